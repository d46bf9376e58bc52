//! One file a command; each reads like a recipe.

pub mod baseline;
pub mod certificate;
pub mod compare;
pub mod completions;
pub mod link;
pub mod models;
pub mod project;
pub mod report;
pub mod run_prefill;
pub mod schema;
pub mod serve_decode;
pub mod split;

use std::path::{Path, PathBuf};

use crate::baseline::BaselineFile;
use crate::cli::{Format, OutputArgs};
use crate::cores::{self, CoreList};
use crate::experiment::{Experiment, Plan, Progress, Remote};
use crate::failure::Failure;
use crate::metrics::summary::Summary;
use crate::metrics::{Record, Status, write_atomically};
use crate::node::prefill::PrefillNode;
use crate::preparation::RUN_FILE;
use crate::terminal::{self, Terminal};
use crate::workload;

/// A runtime for the network, on the thread that blocks on it; compute has its own thread. Threads
/// that it starts for blocking work stay where the process may run now, wherever the network's
/// thread is kept later.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let everywhere = cores::current();
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // For touching the memory of new caches; many peers at once must not be many threads.
        .max_blocking_threads(8)
        .on_thread_start(move || {
            let _ = everywhere.as_ref().map(cores::pin);
        })
        .build()?)
}

/// The run file of a run's folder, or the file itself.
pub fn run_file(run: &Path) -> PathBuf {
    match run.is_dir() {
        true => run.join(RUN_FILE),
        false => run.to_owned(),
    }
}

/// The folder of a run, of which the folder or its file was given.
fn folder_of(run: &Path) -> PathBuf {
    match run.is_dir() {
        true => run.to_owned(),
        false => run.parent().unwrap_or(Path::new("")).to_owned(),
    }
}

/// Reads a recorded run: its file, or that of its folder.
fn read_run(run: &Path) -> Result<Record, Failure> {
    let record = Record::read(&run_file(run));
    record.map_err(|error| Failure::Setting(format!("{error:#}")))
}

/// Keeps the network's thread, which is the one that calls this, on cores of its own; to be called
/// when compute has its threads.
fn keep_network_on(cores: Option<&CoreList>) -> Result<(), Failure> {
    let refused =
        |cores: &CoreList, why| Failure::Setting(format!("--network-cores {cores}: {why}"));
    cores.map_or(Ok(()), |cores| {
        cores::pin(cores).map_err(|why| refused(cores, why))
    })
}

/// Measures the plan until it is done, fails or Ctrl-C comes; the record is complete either way.
async fn measure(
    plan: &Plan,
    node: &PrefillNode,
    remote: Option<Remote<'_>>,
    stand_in: Option<&BaselineFile>,
    record: &mut Record,
    path: &Path,
    terminal: &Terminal,
) -> anyhow::Result<()> {
    record.prompt_set_digest = Some(workload::set_digest(&plan.prompts));
    let task = terminal.task("measuring", plan.requests());
    let observer = |progress: Progress| match progress {
        Progress::Next(what) => task.now(&format!("measuring {what}")),
        Progress::Done => task.step(),
    };
    let outcome = {
        let mut experiment = Experiment {
            node,
            remote,
            record,
            path,
            stand_in,
            observer: &observer,
        };
        tokio::select! {
            outcome = experiment.run(plan) => outcome,
            signal = tokio::signal::ctrl_c() => {
                signal?;
                Err(Failure::Interrupted.into())
            }
        }
    };
    let (status, error) = match &outcome {
        Ok(()) => (Status::Complete, None),
        Err(e) if matches!(e.downcast_ref(), Some(Failure::Interrupted)) => {
            (Status::Interrupted, None)
        }
        Err(e) => (Status::Failed, Some(format!("{e:#}"))),
    };
    let finished = Experiment::finish(record, path, status, error);
    outcome.and(finished)
}

/// Writes the report beside the record and shows the result as the user wants it.
fn conclude(
    record: &Record,
    folder: &Path,
    output: &OutputArgs,
    outcome: anyhow::Result<()>,
    terminal: &Terminal,
) -> anyhow::Result<()> {
    let mut written = Ok(());
    if record.cases.iter().any(|case| !case.samples.is_empty()) {
        // From the file, as `report` does: JSON may round the last digit of a number. Figures that
        // cannot be written any more can still be read.
        written = Record::read(&folder.join(RUN_FILE))
            .and_then(|read| crate::report::write_folder(&read, folder).map(drop));
        output.show(record)?;
    }
    if record.check_failed() {
        let also = outcome.and(written).err();
        return Err(match also {
            Some(error) => error.context(Failure::OutputsDiffer),
            None => Failure::OutputsDiffer.into(),
        });
    }
    outcome?;
    written?;
    terminal.line(&format!("report: {}", folder.display()));
    Ok(())
}

impl OutputArgs {
    /// Renders the result and puts it on stdout or into the file that was asked for.
    fn show(&self, record: &Record) -> anyhow::Result<()> {
        let text = match self.format {
            Format::Table => crate::report::to_terminal(record),
            Format::Json => serde_json::to_string_pretty(&Summary::of(record))?,
            Format::Jsonl => crate::report::samples_jsonl(record)?,
            Format::Csv => crate::report::samples_csv(record)?,
            Format::Md => crate::report::to_markdown(record),
        };
        self.put(&text)
    }

    /// Puts a result on stdout or into the file that was asked for.
    fn put(&self, text: &str) -> anyhow::Result<()> {
        let named = self.output.as_deref();
        match named.filter(|path| *path != Path::new("-")) {
            None if self.format == Format::Table => terminal::show(text.trim_end()),
            None => terminal::print(text.trim_end()),
            Some(path) => write_atomically(path, (text.trim_end().to_owned() + "\n").as_bytes()),
        }
    }
}
