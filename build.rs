//! Stamps the build with the git revision, the target and the compiler, for `environment::Build`.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

fn main() {
    let revision = git_revision().or_else(packaged_revision);
    let revision = revision.unwrap_or_else(|| "unknown".to_owned());
    let of_cargo = |name| env::var(name).unwrap_or_else(|_| "unknown".to_owned());
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let rustc = output(Command::new(rustc).arg("--version"));
    let rustc = rustc.unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=DISAGG_GIT_REVISION={revision}");
    println!("cargo::rustc-env=DISAGG_TARGET={}", of_cargo("TARGET"));
    println!(
        "cargo::rustc-env=DISAGG_TARGET_FEATURES={}",
        of_cargo("CARGO_CFG_TARGET_FEATURE")
    );
    println!("cargo::rustc-env=DISAGG_RUSTC={rustc}");
    watch_sources();
}

/// Short hash of HEAD, with `-dirty` where tracked files differ from it.
/// `None` without git, without a commit, or where this folder only lies inside another repository.
fn git_revision() -> Option<String> {
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    watch_git();
    let hash = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(format!("{hash}{}", suffix(!changes.is_empty())))
}

/// The revision that `cargo package` wrote down, where this is the package and no clone.
fn packaged_revision() -> Option<String> {
    let info = fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, from_hash) = info.split_once("\"sha1\": \"")?;
    let hash = from_hash.get(..12)?;
    let dirty = info.contains("\"dirty\": true");
    Some(format!("{hash}{}", suffix(dirty)))
}

fn suffix(dirty: bool) -> &'static str {
    if dirty { "-dirty" } else { "" }
}

/// Runs again when HEAD moves. The index is not watched: git rewrites it on a mere `git status`,
/// and each time the whole crate would be built anew.
fn watch_git() {
    for name in ["HEAD", "refs/heads", "packed-refs"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]) {
            watch(Path::new(&path));
        }
    }
}

/// Runs again when a file changes that the build is made of: it may have become dirty, or clean.
fn watch_sources() {
    for name in ["build.rs", "Cargo.toml", "Cargo.lock", "src"] {
        watch(Path::new(name));
    }
}

/// Only what exists: cargo runs a build script every time that waits for a missing file.
fn watch(path: &Path) {
    if path.exists() {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    // Without optional locks `git status` leaves the index as it is.
    output(
        Command::new("git")
            .arg("--no-optional-locks")
            .args(arguments),
    )
}

fn output(command: &mut Command) -> Option<String> {
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned())
}
