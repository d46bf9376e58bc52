//! What the commands that run a model do before anything is measured: threads, model,
//! prompts, and an empty record. The output folder is `output`'s, nodes' identities are `tls`'s.

mod output;
mod tls;

pub use output::{OutputFolder, RUN_FILE};
pub use tls::{Pair, demand_peer, new_identity, transport};

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use sysinfo::System;

use crate::cli::{Command, ModelArgs, PromptArgs, Repeats, RequestArgs, RunArgs, TokenArgs};
use crate::cores::{self, CoreList};
use crate::environment::{self, Environment, process_rss_bytes};
use crate::experiment::{Auto, Plan, Way, now};
use crate::failure::Failure;
use crate::local_peer;
use crate::metrics::{
    Environments, Memory, ModelRecord, Observed, Record, RunInfo, SCHEMA_VERSION, Setting, Status,
};
use crate::model::cache_pool::CachePool;
use crate::model::checkpoint::Checkpoint;
use crate::model::device::DeviceChoice;
use crate::model::engine::Engine;
use crate::model::memory;
use crate::model::source::{self, ModelFiles, ModelSpec};
use crate::model::tokenizer::Text;
use crate::node;
use crate::node::compute::Compute;
use crate::node::prefill::PrefillNode;
use crate::terminal::Terminal;
use crate::wire::{Source, Token, Transport};
use crate::workload::{self, PlainText, Prompt, Turn};

/// Compute threads: the flag, else as many as the cores that were given, else what the user told
/// the compute libraries, else all cores that this process may use, each once: its two threads
/// share what computes, and every layer waits for the slowest.
pub fn threads(flag: Option<u16>, cores: Option<&CoreList>) -> usize {
    let given = flag.map(usize::from).or(cores.map(CoreList::len));
    let variable = || std::env::var("RAYON_NUM_THREADS").ok()?.parse().ok();
    let usable = || {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        System::physical_core_count().map_or(threads, |cores| threads.min(cores.max(1)))
    };
    (given.or_else(variable).filter(|n| *n > 0)).unwrap_or_else(usable)
}

/// Cores for the network's thread, checked: the flag, else one of its own where the command starts
/// the decode node too; to be called before this process is pinned.
pub fn network_cores(command: &mut Command) -> Result<Option<CoreList>, Failure> {
    let (socket, cores, decode_cores, has_own_peer) = match command {
        Command::ServeDecode(args) => (&mut args.socket, None, None, false),
        Command::RunPrefill(args) => (&mut args.link.socket, None, None, false),
        Command::Split(args) => (
            &mut args.link.socket,
            args.model.cores.as_ref(),
            args.decode_cores.as_ref(),
            args.peer.is_none(),
        ),
        Command::Link(args) => (&mut args.socket, None, None, args.peer.is_none()),
        Command::Baseline(_)
        | Command::Certificate(_)
        | Command::Compare(_)
        | Command::Completions(_)
        | Command::Models(_)
        | Command::Project(_)
        | Command::Report(_)
        | Command::Schema => return Ok(None),
    };
    if let Some(cores) = &socket.network_cores {
        let refused = |why| Failure::Setting(format!("--network-cores {cores}: {why}"));
        cores::check(cores).map_err(refused)?;
    } else if has_own_peer {
        socket.network_cores = local_peer::network_cores(None, cores, decode_cores).0;
    }
    Ok(socket.network_cores.clone())
}

/// Keeps this process on the cores that `--cores` gives; to be called before any thread exists.
pub fn pin(cores: &CoreList) -> Result<(), Failure> {
    cores::pin(cores).map_err(|why| Failure::Setting(format!("--cores {cores}: {why}")))
}

/// Finds or fetches the model's files.
pub fn model_file(args: &ModelArgs, terminal: &Terminal) -> anyhow::Result<ModelFiles> {
    let spec = ModelSpec::parse(&args.model)?.with_layers(args.layers)?;
    Ok(source::resolve(&spec, args.offline, terminal.fetch())?)
}

/// A loaded model.
pub struct Loaded {
    /// Ready to run.
    pub engine: Arc<Engine>,
    /// Layers of the shape that its random weights are taken of, where it has such.
    pub random_of_layers: Option<u32>,
    /// From opening the file to being ready.
    pub load_ns: u64,
}

/// Opens the model, where it fits into this machine's memory for each node that will compute in it.
pub fn open(files: &ModelFiles, args: &ModelArgs, nodes_here: u64) -> anyhow::Result<Checkpoint> {
    args.device.check()?;
    let checkpoint = Checkpoint::of(files)?;
    // What a device has not got its driver says while weights are put there.
    if args.device == DeviceChoice::Cpu {
        let available_bytes = environment::available_memory_bytes();
        memory::check(&checkpoint, args.weights, nodes_here, available_bytes)?;
    }
    Ok(checkpoint)
}

/// Loads an open model.
pub fn load(
    checkpoint: &Checkpoint,
    files: &ModelFiles,
    args: &ModelArgs,
    terminal: &Terminal,
) -> anyhow::Result<Loaded> {
    let started = Instant::now();
    let device = args.device.open()?;
    let task = terminal.task("loading the model", 1);
    let progress = |done: usize, total: usize| task.layers(done, total);
    let engine = Engine::from_checkpoint(
        device.as_ref(),
        checkpoint,
        &files.name,
        &files.sha256,
        args.weights,
        &progress,
    )?;
    let random_of_layers = match checkpoint {
        Checkpoint::Random(random) => Some(random.of_layers as u32),
        Checkpoint::Gguf(_) | Checkpoint::Folder(_) => None,
    };
    Ok(Loaded {
        engine: Arc::new(engine),
        random_of_layers,
        load_ns: started.elapsed().as_nanos() as u64,
    })
}

/// The prompts that the flags ask for, tokenized and checked against the context.
pub fn prompts(
    args: &PromptArgs,
    plain: PlainText,
    engine: &Engine,
) -> anyhow::Result<Vec<Prompt>> {
    let tokenizer = &engine.tokenizer;
    let prompts = if args.prompt_tokens.is_empty() {
        let texts = match (&args.prompts, &args.prompt[..]) {
            (Some(path), _) => workload::read_path(path, plain)?,
            (None, []) => workload::built_in(),
            (None, texts) => workload::from_flags(texts)?,
        };
        let render = |turns: &[Turn]| match (args.raw, turns) {
            (true, [only]) => Ok(Text::Plain(only.text.clone())),
            (true, _) => Err(format!(
                "a conversation of {} turns needs it: leave out --raw",
                turns.len()
            )
            .into()),
            (false, _) => {
                let messages: Vec<_> = (turns.iter())
                    .map(|turn| (turn.role.name(), turn.text.as_str()))
                    .collect();
                tokenizer
                    .chat(&messages)
                    .map_err(Box::<dyn Error + Send + Sync>::from)
            }
        };
        workload::tokenize(texts, args.output_tokens, render, |text| {
            tokenizer.ids(text)
        })?
    } else {
        let mut lengths = args.prompt_tokens.clone();
        lengths.sort_unstable();
        lengths.dedup();
        workload::grid(&lengths, args.output_tokens, |text| tokenizer.encode(text))?
    };
    crate::experiment::check_lengths(engine, &prompts)?;
    Ok(prompts)
}

/// Compute and memory of this node.
pub fn prefill_node(loaded: &Loaded, environment: &Environment) -> anyhow::Result<PrefillNode> {
    Ok(PrefillNode {
        compute: Compute::start(Arc::clone(&loaded.engine))?,
        pool: CachePool::new(node::cache_limit_bytes(environment)),
    })
}

/// The plan that the flags describe.
pub fn plan(prompts: Vec<Prompt>, ways: Vec<Way>, request: &RequestArgs, run: &RunArgs) -> Plan {
    Plan {
        prompts,
        ways,
        repeats: run.repeats.at_least(),
        auto: (run.repeats == Repeats::Auto).then_some(Auto {
            ci_width_pct: run.ci_width,
            time_budget: run.time_budget,
        }),
        warmup: run.warmup,
        seed: run.seed,
        kv_dtype: request.kv_dtype,
        chunk_tokens: request.chunk_tokens,
        interference: false,
    }
}

/// A record of nothing yet.
pub fn record(
    command: &str,
    settings: BTreeMap<String, Setting>,
    environment: Environment,
    loaded: &Loaded,
    request: &RequestArgs,
    seed: u64,
) -> Record {
    let shape = loaded.engine.shape();
    let identity = &loaded.engine.identity;
    Record {
        schema_version: SCHEMA_VERSION,
        run: RunInfo {
            command: command.to_string(),
            argv: std::env::args_os()
                .map(|a| a.to_string_lossy().into_owned())
                .collect(),
            tool_version: environment.build.tool_version.clone(),
            git_revision: environment.build.git_revision.clone(),
            profile: environment.build.profile.clone(),
            started_at: now(),
            resumed_at: Vec::new(),
            finished_at: None,
            status: Status::Running,
            seed,
            error: None,
        },
        configuration: settings,
        environment: Environments {
            prefill: environment,
            decode: None,
        },
        model: ModelRecord {
            name: identity.name.clone(),
            file_sha256: identity.file_sha256.clone(),
            weights: identity.weights.clone(),
            kernels: Some(loaded.engine.kernels.clone()),
            fingerprint: identity.fingerprint(),
            weight_bytes: loaded.engine.weight_bytes() as u64,
            n_layers: shape.n_layers as u32,
            n_kv_heads: shape.n_kv_heads as u32,
            head_dim: shape.head_dim as u32,
            kv_bytes_per_token: shape.kv_layout(request.kv_dtype).bytes_per_token() as u64,
            layer_weights: Some(shape.layer_weights()),
            random_of_layers: loaded.random_of_layers,
            load_ns: loaded.load_ns,
        },
        link: None,
        memory: Memory {
            loaded_bytes: process_rss_bytes(),
            peak_bytes: None,
            cache_bytes: 0,
        },
        decode_memory: None,
        prompt_set_digest: None,
        baseline: None,
        cases: Vec::new(),
        interference: None,
        observed: Observed::default(),
    }
}

/// The shared token, from its file or its variable.
pub fn token(args: &TokenArgs) -> anyhow::Result<Option<Token>> {
    // A token that cannot be used is this node's configuration, not the peer's refusal.
    let unusable = |from: &str, error| Failure::Setting(format!("{from}: {error}"));
    match &args.token_file {
        Some(path) => match Token::from_file(path) {
            Ok(token) => Ok(Some(token)),
            Err(error) => Err(unusable("--token-file", error).into()),
        },
        None => Token::from_env().map_err(|error| unusable("DISAGG_TOKEN", error).into()),
    }
}

/// The interface or address that `--bind` names.
pub fn source(bind: &str) -> Result<Source, Failure> {
    Source::choose(bind, &environment::interfaces())
        .map_err(|why| Failure::Setting(format!("--bind: {why}")))
}

/// Refuses to go off loopback where neither a token nor TLS says who is who, unless the user said
/// so aloud.
pub fn demand_token(
    token: Option<&Token>,
    transport: &Transport,
    args: &TokenArgs,
    address: &str,
) -> Result<(), Failure> {
    if token.is_some() || transport.authenticates() || args.insecure {
        return Ok(());
    }
    Err(Failure::Setting(format!(
        "{address} is not on loopback and no token is set: give both nodes the same secret with \
         --token-file or DISAGG_TOKEN, or identities of their own with --tls-identity, or say \
         --insecure"
    )))
}
