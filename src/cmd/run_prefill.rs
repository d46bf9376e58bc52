//! `run-prefill`: the prefill role alone, against a decode node somewhere.

use std::collections::BTreeMap;

use super::split::{connect, kept_fit, remote_peer, split_ways};
use crate::cli::RunPrefillArgs;
use crate::environment::Environment;
use crate::metrics::Setting;
use crate::node;
use crate::preparation::{self, OutputFolder, RUN_FILE};
use crate::terminal::Terminal;
use crate::workload::PlainText;

/// Runs the split arm alone and writes its record.
pub fn run(
    args: &RunPrefillArgs,
    settings: BTreeMap<String, Setting>,
    threads: usize,
    terminal: &Terminal,
) -> anyhow::Result<()> {
    let folder = OutputFolder::of_new_run(args.run.out.as_deref(), "run-prefill")?;
    let kept_fit = kept_fit(&args.link)?;
    let peer = remote_peer(&args.peer, &args.link)?;
    let file = preparation::model_file(&args.model, terminal)?;
    let checkpoint = preparation::open(&file, &args.model, 1)?;
    let loaded = preparation::load(&checkpoint, &file, &args.model, terminal)?;
    let prompts = preparation::prompts(&args.prompts, PlainText::Accepted, &loaded.engine)?;
    let mut environment = Environment::capture(threads);
    environment.network_cores = args.link.socket.network_cores.clone();
    environment.device = loaded.engine.device.clone();
    let introduction = node::introduction(&loaded.engine, &environment)?;
    let node = preparation::prefill_node(&loaded, &environment)?;
    let ways = split_ways(&args.link);
    let plan = preparation::plan(prompts, ways, &args.request, &args.run);
    let mut record = preparation::record(
        "run-prefill",
        settings,
        environment,
        &loaded,
        &args.request,
        plan.seed,
    );
    let path = folder.join(RUN_FILE);
    let runtime = super::runtime()?;
    super::keep_network_on(args.link.socket.network_cores.as_ref())?;
    let outcome = runtime.block_on(async {
        let remote = connect(&peer, &introduction, kept_fit, &mut record).await?;
        super::measure(
            &plan,
            &node,
            Some(remote),
            None,
            &mut record,
            &path,
            terminal,
        )
        .await
    });
    super::conclude(&record, &folder, &args.run.output, outcome, terminal)
}
