//! `report`: the report of a recorded run made anew, or several runs laid over each other. Measures
//! nothing.

use std::path::{Path, PathBuf};

use super::{read_run, run_file};
use crate::cli::ReportArgs;
use crate::failure::Failure;
use crate::metrics::Record;
use crate::preparation::{RUN_FILE, output_folder, writable_folder};
use crate::report::{self, Named};
use crate::terminal::Terminal;

/// Reads the runs and writes their report.
pub fn run(args: &ReportArgs, terminal: &Terminal) -> anyhow::Result<()> {
    let records: Vec<Record> = (args.runs.iter())
        .map(|run| read_run(run))
        .collect::<Result<_, Failure>>()?;
    let folder = match (&args.runs[..], &records[..]) {
        ([run], [record]) => {
            let folder = folder(run, args.out.as_deref())?;
            report::write_folder(record, &folder)?;
            folder
        }
        _ => {
            let folder = output_folder(args.out.as_deref(), "report")?;
            let paths = args.runs.iter().map(PathBuf::as_path);
            let runs = Named::all(paths.zip(records).collect());
            report::write_overlay(&runs, &folder)?;
            folder
        }
    };
    terminal.line(&format!("report: {}", folder.display()));
    Ok(())
}

/// Where the report of one run goes: beside it unless somewhere else is asked for.
fn folder(run: &Path, out: Option<&Path>) -> Result<PathBuf, Failure> {
    let file = run_file(run);
    let folder = match (out, file.parent()) {
        (Some(out), _) => out,
        (None, Some(parent)) if !parent.as_os_str().is_empty() => parent,
        (None, _) => Path::new("."),
    };
    writable_folder(folder)?;
    let other = folder.join(RUN_FILE);
    if other.exists() && !is_same(&other, &file) {
        return Err(Failure::Setting(format!(
            "{} is another run, and a folder has the report of one: choose another folder with --out",
            other.display()
        )));
    }
    Ok(folder.to_owned())
}

fn is_same(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}
