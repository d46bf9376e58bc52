//! The folder that a run or a report is written into: chosen, made, kept from other processes, and
//! taken away again where nothing came of it.

use std::fs::{File, TryLockError};
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// The record's name in an output folder.
pub const RUN_FILE: &str = "run.json";

/// A folder to write into. What was made for it and is still empty when this is dropped is removed.
#[derive(Debug)]
pub struct OutputFolder {
    path: PathBuf,
    /// Folders that this process made, outermost first.
    made: Vec<PathBuf>,
}

impl Deref for OutputFolder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        // One that has something in it is refused, and so are those around it.
        for folder in self.made.iter().rev() {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

impl OutputFolder {
    /// The folder of a run that is there already.
    pub fn existing(path: PathBuf) -> Self {
        let made = Vec::new();
        Self { path, made }
    }

    /// Creates a folder where it is missing, and makes sure that files can be made in it.
    pub fn writable(path: &Path) -> Result<Self, Failure> {
        let folder = Self::create(path.to_owned()).map_err(|error| not_writable(path, &error))?;
        folder.demand_writable()?;
        Ok(folder)
    }

    /// The folder of a new run: the one that was asked for, else `reports/TIME-COMMAND`. Made before
    /// any work is done, so that a wrong path costs nothing.
    pub fn of_new_run(out: Option<&Path>, command: &str) -> Result<Self, Failure> {
        let folder = match out {
            Some(path) => Self::writable(path)?,
            None => {
                #[expect(clippy::disallowed_methods, reason = "a name, no duration")]
                let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
                let wanted = Path::new("reports").join(format!("{time}-{command}"));
                let folder = Self::numbered(&wanted).map_err(|e| not_writable(&wanted, &e))?;
                folder.demand_writable()?;
                folder
            }
        };
        let run_file = folder.join(RUN_FILE);
        if run_file.exists() {
            return Err(Failure::Setting(format!(
                "{} exists and records are never overwritten: choose another folder with --out",
                run_file.display()
            )));
        }
        Ok(folder)
    }

    fn create(path: PathBuf) -> io::Result<Self> {
        let mut folder = Self::existing(path);
        let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
        let missing = folder.path.ancestors().take_while(is_missing);
        let missing: Vec<PathBuf> = missing.map(Path::to_owned).collect();
        for path in missing.into_iter().rev() {
            match std::fs::create_dir(&path) {
                Ok(()) => folder.made.push(path),
                // Another process was quicker, and so it is that one's.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Ok(folder)
    }

    /// Creates `wanted`, or with a number behind it where a run of the same second has it.
    fn numbered(wanted: &Path) -> io::Result<Self> {
        let mut path = wanted.to_path_buf();
        let mut number = 1;
        loop {
            let folder = Self::create(path)?;
            if folder.made.last() == Some(&folder.path) {
                return Ok(folder);
            }
            number += 1;
            path = PathBuf::from(format!("{}-{number}", wanted.display()));
        }
    }

    fn demand_writable(&self) -> Result<(), Failure> {
        let probe = tempfile::NamedTempFile::new_in(&self.path);
        probe
            .map(drop)
            .map_err(|error| not_writable(&self.path, &error))
    }

    /// Keeps other processes from measuring into this folder for as long as the result lives.
    pub fn claim(&self) -> Result<File, Failure> {
        let path = match self.path.as_os_str().is_empty() {
            true => Path::new("."),
            false => &self.path,
        };
        let refuse = |why: String| {
            Failure::Setting(format!(
                "cannot claim {}: {why}: choose another folder with --out",
                path.display()
            ))
        };
        let opened = File::open(path).map_err(|error| refuse(error.to_string()))?;
        match opened.try_lock() {
            Ok(()) => Ok(opened),
            Err(TryLockError::WouldBlock) => {
                Err(refuse("another process is measuring into it".into()))
            }
            // A file system without locks keeps nobody out.
            Err(TryLockError::Error(_)) => Ok(opened),
        }
    }
}

fn not_writable(folder: &Path, error: &io::Error) -> Failure {
    Failure::Setting(format!(
        "cannot write into {}: {error}: choose another folder with --out",
        folder.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_made_and_stayed_empty_is_removed() {
        let here = tempfile::tempdir().unwrap();
        let there = here.path().join("there");
        std::fs::create_dir(&there).unwrap();
        drop(OutputFolder::writable(&there).unwrap());
        assert!(there.exists(), "it is not ours");

        let run = there.join("a/run");
        drop(OutputFolder::writable(&run).unwrap());
        assert!(!there.join("a").exists());
        let folder = OutputFolder::writable(&run).unwrap();
        std::fs::write(folder.join(RUN_FILE), "{}").unwrap();
        drop(folder);
        assert!(run.join(RUN_FILE).exists());
        let refused = OutputFolder::of_new_run(Some(&run), "split").unwrap_err();
        assert!(refused.to_string().contains("never overwritten"));
        assert!(run.join(RUN_FILE).exists());
    }

    #[test]
    fn a_name_that_is_taken_gets_a_number_and_stays_with_its_owner() {
        let here = tempfile::tempdir().unwrap();
        let wanted = here.path().join("reports/now-split");
        let first = OutputFolder::numbered(&wanted).unwrap();
        let second = OutputFolder::numbered(&wanted).unwrap();
        assert_eq!(*second, *here.path().join("reports/now-split-2"));
        drop(second);
        assert!(first.exists());
        drop(first);
        assert!(!here.path().join("reports").exists());
    }
}
