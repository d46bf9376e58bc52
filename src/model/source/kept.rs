//! Small files of this tool's own in the model cache: read as far as a limit goes, written under a
//! temporary name and renamed. What is in them is left to their owners.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::text_file;

/// Largest of these files, in bytes; a larger one counts as damaged.
pub(super) const MAX_BYTES: u64 = 4 << 20;

/// What the file holds; nothing where there is none. One that is damaged holds nothing either, as
/// nothing in these files is worth an end of the run.
pub(super) fn read<T: DeserializeOwned + Default>(path: &Path) -> T {
    let parsed = match text_file::read(path, MAX_BYTES) {
        Ok(text) => serde_json::from_str(&text).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return T::default(),
        Err(error) => Err(error),
    };
    parsed.unwrap_or_else(|error| {
        tracing::warn!("{} is ignored, for it is damaged: {error}", path.display());
        T::default()
    })
}

/// Replaces the file. Of two processes that do so at once one wins, and the file is whole.
pub(super) fn write<T: Serialize>(path: &Path, content: &T) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&serde_json::to_vec(content)?)?;
    file.persist(path)?;
    Ok(())
}
