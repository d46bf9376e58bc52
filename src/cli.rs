//! The command line: what can be said, no logic.

mod limits;
mod tls;

pub use limits::LimitArgs;
pub use tls::{CertificateArgs, TlsArgs};

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::compare::Gate;
use crate::cores::CoreList;
use crate::metrics::Transfer;
use crate::model::device::DeviceChoice;
use crate::model::kv_cache::KvDtype;
use crate::model::kv_int8::WireRows;
use crate::model::weights::WeightsFormat;
use crate::workload::parse_length;

/// Version and revision, as `--version` prints them.
const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("DISAGG_GIT_REVISION"),
    ")"
);

/// The port that the notebook's decode server listened on.
pub const DEFAULT_PORT: u16 = 5556;

/// Should I split LLM prefill and decode across my two machines?
///
/// Runs the same prompts on one node and split over two (prefill node, KV cache over TCP, decode
/// node), checks that the answers are the same, and says what the split costs.
#[derive(Debug, Parser)]
#[command(name = "disagg-bench", version = VERSION, after_help = EXAMPLES)]
#[command(max_term_width = 80)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "Examples:
  disagg-bench split                          all on this machine, over loopback
  disagg-bench serve-decode --listen 0.0.0.0:5556 --token-file token.txt
  disagg-bench split --peer 10.0.0.2:5556 --token-file token.txt
  disagg-bench baseline --prompt-tokens 128,512 --output-tokens 50

Exit codes: 0 ok, 1 run failed, 2 usage, 3 configuration or model, 4 network
or peer, 5 outputs or checksums differ, 6 a change beyond --fail-on,
130 interrupted (what was measured is kept)";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the prompts on this node alone
    Baseline(BaselineArgs),
    /// Be the decode node: take KV caches, generate, stream tokens back
    ServeDecode(ServeDecodeArgs),
    /// Be the prefill node alone: prefill, ship the KV cache, collect the tokens
    RunPrefill(RunPrefillArgs),
    /// Measure the link alone, without a model: KV-shaped payloads of many sizes
    Link(LinkCommandArgs),
    /// What can be run by name; what a model file holds and what it becomes
    Models(ModelsArgs),
    /// What other links, RDMA or a faster engine would change: from a run, or from a model's shape
    Project(ProjectArgs),
    /// The experiment: the same prompts on one node and split over two, compared
    Split(SplitArgs),
    /// Rebuild the report of a recorded run from its run.json, or lay several over each other
    Report(ReportArgs),
    /// Print the JSON schema of run.json
    #[command(after_help = "Example:
  disagg-bench schema > metrics-v1.json")]
    Schema,
    /// Make this node's certificate and key for TLS, and print the fingerprint that peers pin
    Certificate(CertificateArgs),
    /// Print what makes a shell complete the commands and flags of this program
    Completions(CompletionsArgs),
    /// Two recorded runs: what changed, whether that may be chance, and whether it is allowed
    Compare(CompareArgs),
}

#[derive(Debug, Args)]
pub struct GlobalArgs {
    /// Say nothing but results and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say more; twice for debugging
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Read settings from this TOML file (default: ./disagg-bench.toml if it is there)
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print every effective setting with its origin and stop
    #[arg(long, global = true)]
    pub show_config: bool,
}

#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Built-in name (smollm2-135m), GGUF file, folder with safetensors, a hub's org/name,
    /// org/name@revision or org/name:file.gguf, or random weights of a shape: dummy:NAME (of the
    /// table that `project --model` knows) or dummy:config.json
    #[arg(long, default_value = "smollm2-135m", value_name = "MODEL")]
    pub model: String,
    /// What computes: cpu, cuda:N or metal (builds with the feature `cuda` or `metal`)
    #[arg(long, default_value_t, value_name = "DEVICE")]
    pub device: DeviceChoice,
    /// Of random weights: so many of the shape's layers [default: all]
    #[arg(long, value_name = "N")]
    pub layers: Option<usize>,
    /// What the matrices become at load [default: as-is on a device and where all run on fast
    /// kernels here, else q8; f32 for a file of floats]
    #[arg(long, value_name = "FORMAT")]
    pub weights: Option<WeightsFormat>,
    /// Compute threads [default: the physical cores this process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Keep this process, compute and network, on these cores, such as 0,2-3 [default: anywhere]
    #[arg(long, value_name = "LIST")]
    pub cores: Option<CoreList>,
    /// Fetch nothing: the model must be in the cache (HF_HUB_OFFLINE=1 does so for hubs)
    #[arg(long)]
    pub offline: bool,
}

#[derive(Debug, Args)]
pub struct PromptArgs {
    /// A prompt; may be given several times [default: four built-in prompts]
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["prompts", "prompt_tokens"])]
    pub prompt: Vec<String>,
    /// JSON lines {"prompt": ..., "max_tokens": ...}, or OpenAI messages or ShareGPT conversations
    /// as JSON or JSON lines; `-` is stdin
    #[arg(long, value_name = "FILE", conflicts_with = "prompt_tokens")]
    pub prompts: Option<PathBuf>,
    /// Prompts of exactly these lengths, from text in the public domain
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = parse_length)]
    pub prompt_tokens: Vec<usize>,
    /// Tokens to generate for each prompt
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub output_tokens: u32,
    /// Prompts go to the model as they are, without its chat template
    #[arg(long)]
    pub raw: bool,
}

#[derive(Debug, Args)]
pub struct RequestArgs {
    /// Element type of the KV cache, the same in every arm
    #[arg(long, default_value = "f16", value_name = "DTYPE")]
    pub kv_dtype: KvDtype,
    /// Prefill this many tokens at a time [default: the whole prompt]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub chunk_tokens: Option<u32>,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Measured requests of each prompt and arm; `auto` goes on until the interval of the change
    /// of E2E (of E2E itself, with one kind of arm) is as narrow as --ci-width or --time-budget ends
    #[arg(long, default_value = "5", value_name = "N|auto", value_parser = parse_repeats)]
    pub repeats: Repeats,
    /// With `--repeats auto`: width of the 95% interval at which a prompt has been measured enough,
    /// in percent of E2E
    #[arg(long, default_value = "2", value_name = "PCT", value_parser = parse_percent)]
    pub ci_width: f64,
    /// With `--repeats auto`: time for all prompts together
    #[arg(long, default_value = "300", value_name = "SECONDS", value_parser = parse_seconds)]
    pub time_budget: Duration,
    /// Requests of each prompt and arm before measuring
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub warmup: u32,
    /// Seed of the order in which arms take turns, and of the intervals' resamples
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Folder for run.json, summary.json and the report [default: reports/TIME-COMMAND]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Measured rounds of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// So many.
    Count(u32),
    /// Until an interval is narrow or time is over.
    Auto,
}

impl Repeats {
    /// The fewest rounds: with `auto` as many as an interval takes, if time allows.
    pub fn at_least(self) -> u32 {
        match self {
            Self::Count(n) => n,
            Self::Auto => DEFAULT_REPEATS,
        }
    }
}

/// Measured rounds of a prompt where nobody says otherwise.
const DEFAULT_REPEATS: u32 = 5;

/// The most rounds that can be asked for.
const MAX_REPEATS: u32 = 100_000;

/// Reads a number of rounds or `auto`.
fn parse_repeats(text: &str) -> Result<Repeats, String> {
    if text == "auto" {
        return Ok(Repeats::Auto);
    }
    let count = text.parse().ok().filter(|n| (1..=MAX_REPEATS).contains(n));
    (count.map(Repeats::Count)).ok_or_else(|| {
        format!("{text:?} is no number of repeats: write 1 to {MAX_REPEATS} or auto")
    })
}

/// Reads a share such as `2` or `0.5`.
fn parse_percent(text: &str) -> Result<f64, String> {
    let percent = text.parse().ok().filter(|p| *p > 0.0 && *p <= 100.0);
    percent.ok_or_else(|| format!("{text:?} is no share: write percent above 0, up to 100"))
}

#[derive(Debug, Args)]
pub struct OutputArgs {
    /// How the result is shown: jsonl and csv have one row a request, the others one an arm
    #[arg(long, default_value = "table", value_name = "FORMAT")]
    pub format: Format,
    /// Write the result here instead of stdout (`-`)
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// How a result is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people: the finding, tables, what makes them doubtful
    Table,
    /// summary.json
    Json,
    /// One JSON object a request
    Jsonl,
    /// One line a request
    Csv,
    /// report.md
    Md,
}

#[derive(Debug, Args)]
pub struct TokenArgs {
    /// File with the secret that both nodes share (or the variable DISAGG_TOKEN)
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Off loopback, go without a shared token
    #[arg(long, conflicts_with = "token_file")]
    pub insecure: bool,
}

#[derive(Debug, Args)]
pub struct SocketArgs {
    /// TCP congestion control [default: the system's; reno on loopback]
    #[arg(long, value_name = "NAME")]
    pub congestion_control: Option<String>,
    /// Keep the thread that sends and receives on these cores [default: anywhere; a core for each
    /// node where this command starts the decode node too]
    #[arg(long, value_name = "LIST")]
    pub network_cores: Option<CoreList>,
}

#[derive(Debug, Args)]
pub struct RetryArgs {
    /// How long a peer that does not answer, is busy or breaks off in the handshake is tried again;
    /// requests are never sent twice
    #[arg(long, default_value = "5", value_name = "SECONDS", value_parser = parse_seconds)]
    pub retry_for: Duration,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  disagg-bench baseline
  disagg-bench baseline --prompt-tokens 128,512 --output-tokens 50 --repeats 10
  disagg-bench baseline --model model.gguf --format json -o summary.json
  disagg-bench baseline --model TheBloke/Llama-2-7B-GGUF:llama-2-7b.Q8_0.gguf")]
pub struct BaselineArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub prompts: PromptArgs,
    #[command(flatten)]
    pub request: RequestArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  disagg-bench serve-decode                           on loopback, port 5556
  disagg-bench serve-decode --listen 0.0.0.0:5556 --token-file token.txt
  disagg-bench serve-decode --listen 127.0.0.1:0      prints the port it got

Ctrl-C or SIGTERM: requests under way are finished, nothing new is taken; the
second one stops at once")]
pub struct ServeDecodeArgs {
    /// Address and port to listen on; port 0 takes a free one and prints it
    #[arg(long, default_value_t = format!("127.0.0.1:{DEFAULT_PORT}"), value_name = "HOST:PORT")]
    pub listen: String,
    #[command(flatten)]
    pub token: TokenArgs,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(flatten)]
    pub socket: SocketArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    /// Load no model: serve `link` alone
    #[arg(long)]
    pub link_only: bool,
    /// Negative control: damage this layer of every cache after its checksums were verified, to
    /// see the comparison turn red
    #[arg(long, value_name = "LAYER")]
    pub corrupt_layer: Option<usize>,
    /// Stop when stdin closes: how `split` keeps its own decode node from outliving it
    #[arg(long, hide = true)]
    pub until_stdin_closes: bool,
    #[command(flatten)]
    pub limits: LimitArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  disagg-bench run-prefill --peer 10.0.0.2:5556 --token-file token.txt
  echo 'Why is the sky blue?' |
    disagg-bench run-prefill --peer 127.0.0.1:5556 --prompts -")]
pub struct RunPrefillArgs {
    /// The decode node
    #[arg(long, value_name = "HOST:PORT")]
    pub peer: String,
    #[command(flatten)]
    pub link: LinkArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub prompts: PromptArgs,
    #[command(flatten)]
    pub request: RequestArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Debug, Args)]
pub struct LinkArgs {
    /// When the cache crosses the link: bulk (after prefill), layered (each layer as soon as it
    /// is computed), auto (for each request the one predicted to wait less), or several as arms
    /// of one run, `bulk,layered`
    #[arg(
        long,
        default_value = "bulk",
        value_name = "MODE,MODE",
        value_delimiter = ','
    )]
    pub transfer: Vec<Transfer>,
    /// What the cache is on the wire: same (its own bytes), int8 (fewer bytes, lossy; what it
    /// costs the answer is measured beside it) or both as arms of one run, `same,int8`
    #[arg(
        long,
        default_value = "same",
        value_name = "DTYPE,DTYPE",
        value_delimiter = ','
    )]
    pub wire_dtype: Vec<WireRows>,
    /// TCP connections that carry the cache; more than one helps where one cannot fill the link
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub streams: u32,
    /// Take the link's fit from a file that `link --format json -o FILE` wrote, instead of fitting
    /// it for a moment before the first request
    #[arg(long, value_name = "FILE")]
    pub link_fit: Option<PathBuf>,
    /// Interface, or its address, that connections to the peer leave by [default: as routed]
    #[arg(long, value_name = "ADDRESS|INTERFACE", requires = "peer")]
    pub bind: Option<String>,
    #[command(flatten)]
    pub retry: RetryArgs,
    #[command(flatten)]
    pub token: TokenArgs,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(flatten)]
    pub socket: SocketArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  disagg-bench split                          one machine, over loopback
  disagg-bench split --peer 10.0.0.2:5556 --token-file token.txt
  disagg-bench split --prompt-tokens 128,1024 --output-tokens 50 --repeats 10
  disagg-bench split --interference           what the split saves under load
  disagg-bench split --resume reports/20260101T000000Z-split
                                              what a failure left out")]
pub struct SplitArgs {
    /// The decode node [default: one of its own on loopback]
    #[arg(long, value_name = "HOST:PORT")]
    pub peer: Option<String>,
    /// Keep the decode node that this command starts on these cores [default: as --cores]
    #[arg(long, value_name = "LIST", conflicts_with = "peer")]
    pub decode_cores: Option<CoreList>,
    /// Also measure what a running answer suffers while another prompt is prefilled, on one node
    /// and split; on one machine both nodes get half of the cores, unless --cores and
    /// --decode-cores say which
    #[arg(long)]
    pub interference: bool,
    /// Take the single arm from this file instead of measuring it
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// Finish the interrupted or failed run in this folder, with its own settings; refused if
    /// anything that matters is another now
    #[arg(long, value_name = "RUN", conflicts_with = "out")]
    pub resume: Option<PathBuf>,
    #[command(flatten)]
    pub link: LinkArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub prompts: PromptArgs,
    #[command(flatten)]
    pub request: RequestArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  disagg-bench link                     what loopback and this code can do
  disagg-bench serve-decode --link-only --listen 0.0.0.0:5557 \\
    --token-file token.txt
  disagg-bench link --peer 10.0.0.2:5557 --token-file token.txt --bind ib0
  disagg-bench link --peer 10.0.0.2:5557 --token-file token.txt \\
    --shape Llama-3.1-8B
  disagg-bench link --sizes 64KiB,64MiB --streams 1,4 --format json -o link.json
  disagg-bench link --sizes 64MiB --streams 1 --tls   what TLS costs
  disagg-bench report link.json         the sweep as a page with its chart")]
pub struct LinkCommandArgs {
    /// A node started with `serve-decode --link-only` [default: one of its own on loopback]
    #[arg(long, value_name = "HOST:PORT")]
    pub peer: Option<String>,
    /// Model whose cache is imitated: its layers and bytes per token, in f16
    #[arg(long, default_value = "SmolLM2-135M", value_name = "NAME")]
    pub shape: String,
    /// Payload sizes; a payload is a whole number of tokens
    #[arg(long, default_value = "64KiB,256KiB,1MiB,4MiB,16MiB,64MiB,256MiB,1GiB", value_name = "SIZE,SIZE", value_delimiter = ',', value_parser = parse_size)]
    pub sizes: Vec<u64>,
    /// Numbers of TCP connections to try
    #[arg(long, default_value = "1,2,4", value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=64))]
    pub streams: Vec<u32>,
    /// Largest pieces to try, at most 1MiB
    #[arg(long, default_value = "64KiB,1MiB", value_name = "SIZE,SIZE", value_delimiter = ',', value_parser = parse_size)]
    pub piece_sizes: Vec<u64>,
    /// Warm transfers of each combination; fewer where --seconds-per-row is over before
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub repeats: u32,
    /// Time for each combination; one that cannot have a cold and a warm transfer in it is left out
    #[arg(long, default_value = "3", value_name = "SECONDS", value_parser = parse_seconds)]
    pub seconds_per_row: Duration,
    /// Pause before more transfers of each size, over connections gone idle; 0 leaves them out
    #[arg(long, default_value = "1", value_name = "SECONDS", value_parser = parse_seconds)]
    pub idle_seconds: Duration,
    /// Transfers of each size and number of streams after such a pause
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub idle_repeats: u32,
    /// Interface, or its address, that connections to the peer leave by [default: as routed]
    #[arg(long, value_name = "ADDRESS|INTERFACE", requires = "peer")]
    pub bind: Option<String>,
    #[command(flatten)]
    pub retry: RetryArgs,
    #[command(flatten)]
    pub token: TokenArgs,
    #[command(flatten)]
    pub identity: TlsArgs,
    /// Over loopback, speak TLS with the decode node of this command, each with a certificate that
    /// is thrown away afterwards: what TLS costs
    #[arg(long, conflicts_with_all = ["peer", "tls_identity"], help_heading = tls::HEADING)]
    pub tls: bool,
    #[command(flatten)]
    pub socket: SocketArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Longest time that a flag takes.
const MAX_SECONDS: f64 = 3600.0;

/// Reads a time such as `1` or `0.5`.
fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text
        .parse()
        .ok()
        .filter(|s| (0.0..=MAX_SECONDS).contains(s));
    (seconds.map(Duration::from_secs_f64))
        .ok_or_else(|| format!("{text:?} is no time: write seconds from 0 to {MAX_SECONDS}"))
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  disagg-bench compare reports/before reports/after
  disagg-bench compare old/run.json new/run.json --format md -o comparison.md
  disagg-bench compare old new --fail-on 'split.e2e_ms>5%' \\
    --fail-on 'single.tokens_per_s<-5%'

A change breaks --fail-on if it is significant and beyond the bound; then the
exit code is 6.")]
pub struct CompareArgs {
    /// The earlier run: its run.json, or its folder
    #[arg(value_name = "OLD")]
    pub old: PathBuf,
    /// The later run
    #[arg(value_name = "NEW")]
    pub new: PathBuf,
    /// Fail with code 6 on a significant change beyond this, in percent or the figure's unit; may
    /// be given several times
    #[arg(long, value_name = "ARM.FIGURE>CHANGE")]
    pub fail_on: Vec<Gate>,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  disagg-bench report reports/20260101T120000Z-split   anew, beside its run.json
  disagg-bench report run.json --out report             into another folder
  disagg-bench report before/run after/run --out both   both in one report
  disagg-bench report link.json                         a sweep of `link`

The same file and the same build give the same bytes. Nothing is measured.")]
pub struct ReportArgs {
    /// A run: its run.json, or its folder; several are laid over each other, the first one is what
    /// the others are held against. Or what `link --format json -o FILE` wrote, alone
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,
    /// Folder for the report [default: the run's; of several runs and of a sweep,
    /// reports/TIME-report]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  disagg-bench completions bash > /etc/bash_completion.d/disagg-bench
  disagg-bench completions zsh > ~/.zfunc/_disagg-bench  with ~/.zfunc in fpath
  disagg-bench completions fish > ~/.config/fish/completions/disagg-bench.fish")]
pub struct CompletionsArgs {
    /// Which shell
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  disagg-bench models list
  disagg-bench models show model.gguf --weights q8    as it would run
  disagg-bench models fetch org/name                  before going offline
  disagg-bench models verify smollm2-135m             reads all of it again

Variables: DISAGG_CACHE; of hubs HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT,
HF_HUB_OFFLINE; docs/models.md has them all.")]
pub struct ModelsArgs {
    #[command(subcommand)]
    pub command: ModelsCommand,
}

#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// The built-in names and what the hub's cache holds, as --model takes them
    #[command(after_help = "Example:
  disagg-bench models list")]
    List,
    /// Shape, weights as they will run, fingerprint, and bytes of KV cache
    #[command(after_help = "Example:
  disagg-bench models show model.gguf --weights q8")]
    Show(ShowModelArgs),
    /// Fetch what is missing of a model into its cache and check it
    #[command(after_help = "Examples:
  disagg-bench models fetch smollm2-135m
  disagg-bench models fetch TinyLlama/TinyLlama-1.1B-Chat-v1.0
  HF_TOKEN=... disagg-bench models fetch org/gated-model@main")]
    Fetch(NamedModelArgs),
    /// Read a cached model whole and compare it with what is pinned for it
    #[command(after_help = "Example:
  disagg-bench models verify org/name    exit code 3 if a file is damaged")]
    Verify(CachedModelArgs),
    /// Delete what this tool itself fetched of a model; nothing else, and it does not ask
    #[command(after_help = "Example:
  disagg-bench models remove org/name")]
    Remove(CachedModelArgs),
}

#[derive(Debug, Args)]
pub struct ShowModelArgs {
    #[command(flatten)]
    pub named: NamedModelArgs,
    /// What the matrices become at load [default: as-is where all run on fast
    /// kernels here, else q8; f32 for a file of floats]
    #[arg(long, value_name = "FORMAT")]
    pub weights: Option<WeightsFormat>,
    /// Of random weights: so many of the shape's layers [default: all]
    #[arg(long, value_name = "N")]
    pub layers: Option<usize>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  disagg-bench project RUN                      its requests on 1 to 400 Gbit/s
  disagg-bench project RUN --link-fit link.json --gbps 25,100
  disagg-bench project RUN --prefill-tokens-per-s 20000 \\
    --decode-tokens-per-s 150
  disagg-bench project LOOPBACK_RUN --link-fit link.json \\
    --against RUN_OVER_THAT_LINK
  disagg-bench project --model llama-3.1-70b --prompt 4096 --gbps 25 \\
    --prefill-tokens-per-s 8000")]
pub struct ProjectArgs {
    /// A run: its folder or its run.json
    #[arg(value_name = "RUN", required_unless_present = "model")]
    pub run: Option<PathBuf>,
    /// Project TCP from what `link --format json -o FILE` wrote, instead of the run's own fit
    #[arg(long, value_name = "FILE")]
    pub link_fit: Option<PathBuf>,
    /// Line rates in Gbit/s [default: 1,10,25,50,100,200,400]
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = parse_rate)]
    pub gbps: Vec<f64>,
    /// Hold the projection against runs over that link: the fitted one, or one of the one --gbps
    #[arg(long, value_name = "RUN", num_args = 1.., conflicts_with = "model")]
    pub against: Vec<PathBuf>,
    /// Without a run: a published model by name, or the path of a config.json
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "run", requires_all = ["prompt", "prefill_tokens_per_s"])]
    pub model: Option<String>,
    /// Prompt length, with --model
    #[arg(long, value_name = "TOKENS", requires = "model", value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub prompt: Option<u32>,
    /// Element type of the cache, with --model
    #[arg(long, default_value = "f16", value_name = "DTYPE")]
    pub kv_dtype: CacheElement,
    /// Prefill speed of the engine that is asked about
    #[arg(long, value_name = "N", value_parser = parse_rate)]
    pub prefill_tokens_per_s: Option<f64>,
    /// Its decode speed, one sequence [default: as measured]
    #[arg(long, value_name = "N", requires = "prefill_tokens_per_s", value_parser = parse_rate)]
    pub decode_tokens_per_s: Option<f64>,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Element of a cache that is not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CacheElement {
    F32,
    F16,
    Bf16,
    Fp8,
}

impl CacheElement {
    /// Its size.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Fp8 => 1,
        }
    }
}

/// Highest rate that a flag takes: above any link and engine, and low enough to compute with.
const MAX_RATE: f64 = 1e9;

/// Reads a rate such as `25` or `0.1`.
fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok();
    (rate.filter(|rate| *rate > 0.0 && *rate <= MAX_RATE))
        .ok_or_else(|| format!("{text:?} is no rate: write a number above 0, at most {MAX_RATE}"))
}

#[derive(Debug, Args)]
pub struct NamedModelArgs {
    /// Built-in name, GGUF file, folder with safetensors, a hub's org/name, org/name@revision or
    /// org/name:file.gguf, or dummy:NAME for random weights of a shape
    #[arg(default_value = "smollm2-135m", value_name = "MODEL")]
    pub model: String,
    /// Fetch nothing: the model must be in the cache (HF_HUB_OFFLINE=1 does so for hubs)
    #[arg(long)]
    pub offline: bool,
}

#[derive(Debug, Args)]
pub struct CachedModelArgs {
    /// Built-in name, or a hub's org/name, org/name@revision or org/name:file.gguf
    #[arg(value_name = "MODEL")]
    pub model: String,
}

/// Reads a size such as `64KiB`, `10MB` or `4096`.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        "KB" | "kB" => Some(1_000),
        "MB" => Some(1_000_000),
        "GB" => Some(1_000_000_000),
        _ => None,
    };
    let number = digits.parse::<u64>().ok().filter(|n| *n > 0);
    (number
        .zip(factor)
        .and_then(|(n, factor)| n.checked_mul(factor)))
    .ok_or_else(|| {
        format!("{text:?} is not a size: write a whole number and B, KiB, MiB, GiB, KB, MB or GB")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// Help of a command and of all below it, and its examples as they are written: clap would wrap
    /// those too, in the middle of a command.
    fn helps(command: &mut clap::Command) -> Vec<String> {
        let mut all = vec![
            command.render_help().to_string(),
            command.render_long_help().to_string(),
        ];
        all.extend(command.get_after_help().map(ToString::to_string));
        all.extend(command.get_subcommands_mut().flat_map(helps));
        all
    }

    #[test]
    fn help_fits_80_columns() {
        let mut command = Cli::command();
        command.build();
        let helps = helps(&mut command);
        assert!(helps.len() > 20, "{}", helps.len());
        for line in helps.iter().flat_map(|help| help.lines()) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
