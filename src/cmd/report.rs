//! `report`: the report of a recorded run made anew, several runs laid over each other, or a sweep
//! over a link. Measures nothing.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{read_run, run_file};
use crate::cli::ReportArgs;
use crate::failure::Failure;
use crate::link::Sweep;
use crate::metrics::Record;
use crate::preparation::{OutputFolder, RUN_FILE};
use crate::report::{self, Named};
use crate::terminal::Terminal;
use crate::text_file::{self, MAX_RECORD_BYTES};

/// Reads the runs and writes their report.
pub fn run(args: &ReportArgs, terminal: &Terminal) -> anyhow::Result<()> {
    if let Some(sweep) = only_sweep(&args.runs)? {
        let folder = OutputFolder::of_new_run(args.out.as_deref(), "report")?;
        report::write_sweep(&sweep, &folder)?;
        terminal.line(&format!("report: {}", folder.display()));
        return Ok(());
    }
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
            let folder = OutputFolder::of_new_run(args.out.as_deref(), "report")?;
            let paths = args.runs.iter().map(PathBuf::as_path);
            let runs = Named::all(paths.zip(records).collect());
            report::write_overlay(&runs, &folder)?;
            folder
        }
    };
    terminal.line(&format!("report: {}", folder.display()));
    Ok(())
}

/// What `link --format json` wrote, if that is what was named. Among runs it is refused: a link alone
/// has none of their figures.
fn only_sweep(paths: &[PathBuf]) -> Result<Option<Sweep>, Failure> {
    for path in paths {
        // What cannot be read is said where runs are read.
        let text = text_file::read(path, MAX_RECORD_BYTES).unwrap_or_default();
        let Ok(Kind { fits: Some(_) }) = serde_json::from_str(&text) else {
            continue;
        };
        let unusable = |why| Failure::Setting(format!("{}: {why}", path.display()));
        if paths.len() > 1 {
            return Err(unusable(
                "a sweep over a link has a report of its own: give it alone".to_owned(),
            ));
        }
        return Sweep::parse(&text).map(Some).map_err(unusable);
    }
    Ok(None)
}

/// What tells a sweep from a run.
#[derive(Deserialize)]
struct Kind {
    fits: Option<IgnoredAny>,
}

/// Where the report of one run goes: beside it unless somewhere else is asked for.
fn folder(run: &Path, out: Option<&Path>) -> Result<OutputFolder, Failure> {
    let file = run_file(run);
    let path = match (out, file.parent()) {
        (Some(out), _) => out,
        (None, Some(parent)) if !parent.as_os_str().is_empty() => parent,
        (None, _) => Path::new("."),
    };
    let folder = OutputFolder::writable(path)?;
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
