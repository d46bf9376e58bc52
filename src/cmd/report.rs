//! `report`: the report of a recorded run, made anew. Measures nothing.

use std::path::{Path, PathBuf};

use super::{read_run, run_file};
use crate::cli::ReportArgs;
use crate::failure::Failure;
use crate::preparation::{RUN_FILE, writable_folder};
use crate::report;
use crate::terminal::Terminal;

/// Reads the run and writes its report.
pub fn run(args: &ReportArgs, terminal: &Terminal) -> anyhow::Result<()> {
    let record = read_run(&args.run)?;
    let folder = folder(args)?;
    report::write_folder(&record, &folder)?;
    terminal.line(&format!("report: {}", folder.display()));
    Ok(())
}

/// Where the report goes: beside the run unless somewhere else is asked for.
fn folder(args: &ReportArgs) -> Result<PathBuf, Failure> {
    let file = run_file(&args.run);
    let folder = match &args.out {
        Some(folder) => folder.clone(),
        None => match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        },
    };
    writable_folder(&folder)?;
    let other = folder.join(RUN_FILE);
    if other.exists() && !is_same(&other, &file) {
        return Err(Failure::Setting(format!(
            "{} is another run, and a folder has the report of one: choose another folder with --out",
            other.display()
        )));
    }
    Ok(folder)
}

fn is_same(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}
