//! Text files that others may have written, read as far as a limit goes.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Largest configuration, in bytes: a model's `config.json`, this tool's settings, the notebook's.
pub const MAX_CONFIGURATION_BYTES: u64 = 4 << 20;

/// Largest run, sweep or baseline, in bytes: the recorded ones have a few megabytes, and what is
/// read takes several times as much memory.
pub const MAX_RECORD_BYTES: u64 = 512 << 20;

/// Reads a whole file of UTF-8 of at most so many bytes. The error says why not, without the path.
pub fn read(path: &Path, most_bytes: u64) -> io::Result<String> {
    let file = File::open(path)?;
    let mut text = String::new();
    // A pipe has no size, so one byte more is read to see whether there is more.
    if file.metadata()?.len() <= most_bytes {
        file.take(most_bytes + 1).read_to_string(&mut text)?;
        if text.len() as u64 <= most_bytes {
            return Ok(text);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::FileTooLarge,
        format!("it has more than {most_bytes} bytes, the most that is read"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_the_limit_and_not_beyond() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "12345").unwrap();
        assert_eq!(read(file.path(), 5).unwrap(), "12345");
        let error = read(file.path(), 4).unwrap_err().to_string();
        assert_eq!(error, "it has more than 4 bytes, the most that is read");
    }

    #[test]
    fn what_never_ends_or_is_no_text_is_refused() {
        let endless = read(Path::new("/dev/zero"), 1 << 16).unwrap_err();
        assert_eq!(endless.kind(), io::ErrorKind::FileTooLarge);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [0xff]).unwrap();
        let binary = read(file.path(), 4).unwrap_err();
        assert_eq!(binary.kind(), io::ErrorKind::InvalidData);
    }
}
