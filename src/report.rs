//! What people see of a run: tables, charts and the report folder, each a pure function of the
//! record. Nothing here measures, and `run.json` itself is the record's to write.

mod answers;
pub mod changes;
pub mod charts;
mod configuration;
mod definitions;
mod document;
#[cfg(test)]
pub mod fixture;
mod interference;
mod lossy;
mod markdown;
pub mod number;
pub(crate) mod overlay;
mod page;
pub mod projected;
pub mod prose;
mod provenance;
mod rows;
mod scenes;
pub mod scored;
mod strip;
mod sweep;
pub(crate) mod table;
pub mod tables;
mod terminal;

pub use configuration::settings;
pub use overlay::Named;
pub use rows::{samples_csv, samples_jsonl};
pub use terminal::to_terminal;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use document::Document;
use projected::Projected;

use crate::link::Sweep;
use crate::metrics::summary::Summary;
use crate::metrics::{Record, write_atomically};

/// `report.md` as text.
pub fn to_markdown(record: &Record) -> String {
    markdown::written(&document(record, &Summary::of(record)))
}

fn document(record: &Record, summary: &Summary) -> Document {
    let projected = Projected::of(record);
    let charts = charts::all(record, summary, &projected.outlooks);
    Document::of_run(record, summary, &projected, charts)
}

/// Writes `summary.json`, `samples.csv`, with `--interference` `interference.csv`, the charts that
/// have something to show, `report.md` and `report.html` into a folder, which is made if it is missing. Returns the paths written; the same
/// record gives the same bytes.
pub fn write_folder(record: &Record, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let summary = Summary::of(record);
    let document = document(record, &summary);
    let mut files = vec![(
        "summary.json",
        serde_json::to_string_pretty(&summary)? + "\n",
    )];
    for (name, rows) in [
        ("samples.csv", samples_csv(record)?),
        ("interference.csv", scenes::interference_csv(record)?),
    ] {
        if !rows.is_empty() {
            files.push((name, rows));
        }
    }
    files.extend(written(&document)?);
    write_files(folder, files)
}

/// Writes the report of several runs, with charts of all of them, into a folder as [`write_folder`]
/// does; raw samples and summaries stay with the runs.
pub fn write_overlay(runs: &[Named], folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    write_files(folder, written(&overlay::document(runs))?)
}

/// Writes the report of a sweep over a link, with its chart, into a folder as [`write_folder`] does.
pub fn write_sweep(sweep: &Sweep, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    write_files(folder, written(&sweep::document(sweep))?)
}

/// A report in every form: its charts, Markdown, the page.
fn written(document: &Document) -> anyhow::Result<Vec<(&'static str, String)>> {
    let charts = document.charts();
    let mut files: Vec<(&str, String)> = charts.map(|c| (c.file, c.svg.clone())).collect();
    files.push(("report.md", markdown::written(document)));
    files.push(("report.html", page::written(document)?));
    Ok(files)
}

fn write_files(folder: &Path, files: Vec<(&str, String)>) -> anyhow::Result<Vec<PathBuf>> {
    fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the report folder {}", folder.display()))?;
    let mut written = Vec::new();
    for (name, content) in files {
        let path = folder.join(name);
        write_atomically(&path, content.as_bytes())?;
        written.push(path);
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::{record, usual_case};

    #[test]
    fn the_same_record_gives_the_same_bytes() {
        let record = record(vec![usual_case(128), usual_case(512)]);
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let written = write_folder(&record, &a.path().join("new/folder")).unwrap();
        let again = write_folder(&record, b.path()).unwrap();
        let names = |paths: &[PathBuf]| -> Vec<_> {
            (paths.iter())
                .map(|p| p.file_name().unwrap().to_owned())
                .collect()
        };
        assert_eq!(names(&written), names(&again));
        for name in ["phases.svg", "samples.csv"] {
            assert!(names(&written).contains(&name.into()), "{name}");
        }
        for (one, other) in written.iter().zip(&again) {
            assert_eq!(fs::read(one).unwrap(), fs::read(other).unwrap(), "{one:?}");
        }
        let read: Summary =
            serde_json::from_slice(&fs::read(b.path().join("summary.json")).unwrap()).unwrap();
        assert_eq!(read.cases.len(), 2);
    }

    #[test]
    fn an_empty_record_still_has_a_report() {
        let folder = tempfile::tempdir().unwrap();
        let written = write_folder(&record(vec![]), folder.path()).unwrap();
        assert_eq!(written.len(), 3);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = write_folder(&record(vec![]), &file.path().join("x")).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("cannot make the report folder"),
            "{error}"
        );
    }
}
