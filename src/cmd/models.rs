//! `models`: what can be run by name, and what a model file holds and becomes.

use tabled::builder::Builder;
use tabled::settings::Style;

use crate::cli::{ModelsArgs, ModelsCommand, NamedModelArgs};
use crate::model::checkpoint::Checkpoint;
use crate::model::engine::ModelIdentity;
use crate::model::kv_cache::KvDtype;
use crate::model::source::{self, BUILT_IN_MODELS, ModelFile, ModelSpec, SourceError};
use crate::model::weights::WeightsFormat;
use crate::report::prose::unpadded;
use crate::terminal::{self, Terminal};

/// Prompt lengths whose cache is shown.
const LENGTHS: [usize; 3] = [1_000, 8_000, 128_000];

/// Lists, shows or fetches.
pub fn run(args: &ModelsArgs, terminal: &Terminal) -> anyhow::Result<()> {
    match &args.command {
        ModelsCommand::List => terminal::print(&list(terminal)?),
        ModelsCommand::Show(args) => {
            let file = resolve(&args.named, terminal)?;
            terminal::print(&show(&file, args.weights)?)
        }
        ModelsCommand::Fetch(model) => {
            let file = resolve(model, terminal)?;
            terminal::print(&format!("{}: {}", file.name, file.path.display()))
        }
    }
}

fn resolve(args: &NamedModelArgs, terminal: &Terminal) -> Result<ModelFile, SourceError> {
    let spec = ModelSpec::parse(&args.model)?;
    source::resolve(&spec, args.offline, terminal.fetch())
}

fn list(terminal: &Terminal) -> anyhow::Result<String> {
    let mut table = Builder::default();
    let mut paths = Vec::new();
    table.push_record(["model", "file", "bytes", "here"]);
    for model in &BUILT_IN_MODELS {
        let found = source::resolve(&ModelSpec::BuiltIn(model), true, terminal.fetch());
        table.push_record([
            model.name.to_owned(),
            model.file_name.to_owned(),
            model.bytes.to_string(),
            match found {
                Ok(file) => {
                    paths.push(format!("{}: {}", model.name, file.path.display()));
                    "yes".to_owned()
                }
                Err(SourceError::NotFetched { .. }) => "not fetched yet".to_owned(),
                Err(error) => error.to_string(),
            },
        ]);
    }
    let table = unpadded(&table.build().with(Style::blank()).to_string());
    // Below it: a path is as long as it is.
    Ok([&[table][..], &paths].concat().join("\n"))
}

/// The file, its shape, what its matrices become and what its caches take.
fn show(file: &ModelFile, weights: Option<WeightsFormat>) -> anyhow::Result<String> {
    let checkpoint = Checkpoint::open(&file.path)?;
    let shape = checkpoint.shape()?;
    let formats = checkpoint.matrix_formats();
    let format = weights.unwrap_or_else(|| WeightsFormat::default_for(&formats));
    let identity = ModelIdentity {
        name: file.name.clone(),
        file_sha256: file.sha256.clone(),
        weights: format.label(&formats),
    };
    let mut table = Builder::default();
    let mut row = |name: &str, value: String| table.push_record([name.to_owned(), value]);
    row("model", file.name.clone());
    row("file", file.path.display().to_string());
    row("from", file.origin.to_string());
    row("bytes", file.bytes.to_string());
    row("SHA-256", file.sha256.clone());
    row("weights", identity.weights.clone());
    row("kernels", format.kernels(&formats));
    row("fingerprint", identity.fingerprint());
    row("layers", shape.n_layers.to_string());
    row(
        "width",
        format!("{}, feed forward {}", shape.hidden, shape.feed_forward),
    );
    row(
        "heads",
        format!(
            "{} of width {}, K/V {}",
            shape.n_heads, shape.head_dim, shape.n_kv_heads
        ),
    );
    row("vocabulary", shape.vocabulary.to_string());
    row("context", format!("{} tokens", shape.context_tokens));
    for dtype in [KvDtype::F16, KvDtype::F32] {
        let token_bytes = shape.kv_layout(dtype).bytes_per_token();
        let at = |tokens: usize| {
            let megabytes = (token_bytes * tokens) as f64 / 1e6;
            format!("{megabytes:.1} MB at {}k", tokens / 1_000)
        };
        let lengths = LENGTHS.map(at).join(", ");
        row(
            &format!("KV cache, {dtype}"),
            format!("{token_bytes} bytes a token: {lengths}"),
        );
    }
    Ok(unpadded(&table.build().with(Style::blank()).to_string()))
}
