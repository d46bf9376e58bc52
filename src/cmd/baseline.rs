//! `baseline`: the prompts on this node alone, and the file that later runs compare with.

use std::collections::BTreeMap;
use std::path::Path;

use crate::baseline::{BASELINE_FILE, BaselineFile, Config};
use crate::cli::BaselineArgs;
use crate::environment::Environment;
use crate::experiment::Way;
use crate::metrics::Setting;
use crate::preparation::{self, RUN_FILE};
use crate::terminal::Terminal;
use crate::workload::PlainText;

/// Runs the single arm, writes its record and `./baseline_metrics.json`.
pub fn run(
    args: &BaselineArgs,
    settings: BTreeMap<String, Setting>,
    threads: usize,
    terminal: &Terminal,
) -> anyhow::Result<()> {
    let folder = preparation::output_folder(args.run.out.as_deref(), "baseline")?;
    let file = preparation::model_file(&args.model, terminal)?;
    let loaded = preparation::load(&file, &args.model, terminal)?;
    let prompts = preparation::prompts(&args.prompts, PlainText::Refused, &loaded.engine)?;
    let environment = Environment::capture(threads);
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
    let outcome = super::runtime()?.block_on(super::measure(
        &plan,
        &node,
        None,
        None,
        &mut record,
        &path,
        terminal,
    ));
    super::conclude(&record, &folder, &args.run.output, outcome, terminal)?;
    let dtype = args.request.kv_dtype.to_string();
    let config = Config::of(&record, &dtype, args.request.chunk_tokens);
    BaselineFile::of(&record, config).write(Path::new(BASELINE_FILE))?;
    terminal.line(&format!("baseline: {BASELINE_FILE}"));
    Ok(())
}
