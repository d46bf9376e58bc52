//! `baseline`: the prompts on this node alone, and the file that later runs compare with.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;

use crate::baseline::{BASELINE_FILE, BaselineFile, BatchProcessing, Config};
use crate::cli::BaselineArgs;
use crate::environment::Environment;
use crate::experiment::{Plan, Way};
use crate::failure::Failure;
use crate::metrics::Setting;
use crate::node::batch::{Batch, together};
use crate::node::prefill::PrefillNode;
use crate::preparation::{self, OutputFolder, RUN_FILE};
use crate::terminal::Terminal;
use crate::workload::PlainText;

/// Runs the single arm, writes its record and `./baseline_metrics.json`.
pub fn run(
    args: &BaselineArgs,
    settings: BTreeMap<String, Setting>,
    threads: usize,
    terminal: &Terminal,
) -> anyhow::Result<()> {
    let folder = OutputFolder::of_new_run(args.run.out.as_deref(), "baseline")?;
    let file = preparation::model_file(&args.model, terminal)?;
    let checkpoint = preparation::open(&file, &args.model, 1)?;
    let loaded = preparation::load(&checkpoint, &file, &args.model, terminal)?;
    let prompts = preparation::prompts(&args.prompts, PlainText::Refused, &loaded.engine)?;
    let mut environment = Environment::capture(threads);
    environment.device = loaded.engine.device.clone();
    let node = preparation::prefill_node(&loaded, &environment)?;
    let plan = preparation::plan(prompts, vec![Way::SingleHere], &args.request, &args.run);
    let mut record = preparation::record(
        "baseline",
        settings,
        environment,
        &loaded,
        &args.request,
        plan.seed,
    );
    let path = folder.join(RUN_FILE);
    let runtime = super::runtime()?;
    let outcome = runtime.block_on(super::measure(
        &plan,
        &node,
        None,
        None,
        &mut record,
        &path,
        terminal,
    ));
    super::conclude(&record, &folder, &args.run.output, outcome, terminal)?;
    let batches = runtime.block_on(async {
        tokio::select! {
            batches = batches(&plan, &node, terminal) => Ok(batches),
            signal = tokio::signal::ctrl_c() => {
                signal?;
                Err(anyhow::Error::from(Failure::Interrupted))
            }
        }
    })?;
    let batch_processing = BatchProcessing::of(&batches, &plan.prompts, &record);
    let dtype = args.request.kv_dtype.to_string();
    let config = Config::of(&record, &dtype, args.request.chunk_tokens);
    let file = BaselineFile::of(&record, config, batch_processing);
    file.write(Path::new(BASELINE_FILE))?;
    terminal.line(&format!("baseline: {BASELINE_FILE}"));
    let changed = |b: &BatchProcessing| b.identical_to_single == Some(false);
    match file.batch_processing.as_ref().is_some_and(changed) {
        true => Err(Failure::OutputsDiffer)
            .context("requests answered in a batch got other answers than alone"),
        false => Ok(()),
    }
}

/// Runs batches of the run's prompts; what cannot be run is said and left out.
async fn batches(plan: &Plan, node: &PrefillNode, terminal: &Terminal) -> Vec<Batch> {
    let requests: Vec<_> = BatchProcessing::prompts(&plan.prompts)
        .map(|prompt| plan.request(prompt, Way::SingleHere))
        .collect();
    let repeats = plan.repeats.min(BatchProcessing::REPEATS);
    let task = terminal.task("measuring", u64::from(repeats));
    let mut batches = Vec::new();
    for _ in 0..repeats {
        task.now(&format!("measuring {} requests at once", requests.len()));
        match together(node, &requests).await {
            Ok(batch) => batches.push(batch),
            Err(error) => {
                terminal.line(&format!("no batch was measured: {error:#}"));
                return Vec::new();
            }
        }
        task.step();
    }
    batches
}
