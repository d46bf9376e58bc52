//! `models`: what can be run by name, what a model holds and becomes, and what is kept of it.

use tabled::builder::Builder;
use tabled::settings::object::Columns;
use tabled::settings::{Alignment, Style};

use crate::cli::{ModelsArgs, ModelsCommand, NamedModelArgs};
use crate::failure::Failure;
use crate::model::checkpoint::Checkpoint;
use crate::model::engine::ModelIdentity;
use crate::model::kv_cache::KvDtype;
use crate::model::memory::{self, Need};
use crate::model::shape::ModelShape;
use crate::model::source::{self, Finding, Format, ModelFiles, ModelSpec, Removed, SourceError};
use crate::model::weights::WeightsFormat;
use crate::report::number::significant;
use crate::report::prose::unpadded;
use crate::terminal::{self, Terminal};

/// Prompt lengths whose cache is shown.
const LENGTHS: [usize; 3] = [1_000, 8_000, 128_000];

/// Lists, shows, fetches, checks or removes.
pub fn run(args: &ModelsArgs, terminal: &Terminal) -> anyhow::Result<()> {
    match &args.command {
        ModelsCommand::List => terminal::print(&list()?),
        ModelsCommand::Show(args) => {
            let files = resolve(&args.named, args.layers, terminal)?;
            terminal::print(&show(&files, args.weights)?)
        }
        ModelsCommand::Fetch(model) => {
            let files = resolve(model, None, terminal)?;
            let place = files.location.path().map_or_else(
                || "random weights, made when they are needed".to_owned(),
                |path| path.display().to_string(),
            );
            terminal::print(&format!("{}: {place}", files.name))
        }
        ModelsCommand::Verify(model) => verify(&model.model),
        ModelsCommand::Remove(model) => {
            let removed = source::remove(&ModelSpec::parse(&model.model)?)?;
            terminal::print(&gone(&model.model, &removed))
        }
    }
}

fn resolve(
    args: &NamedModelArgs,
    layers: Option<usize>,
    terminal: &Terminal,
) -> Result<ModelFiles, SourceError> {
    let spec = ModelSpec::parse(&args.model)?.with_layers(layers)?;
    source::resolve(&spec, args.offline, terminal.fetch())
}

fn list() -> anyhow::Result<String> {
    let mut table = Builder::default();
    let mut below = Vec::new();
    table.push_record(["model", "weights", "MB", "here"]);
    for model in source::held()? {
        let format = match model.format {
            Format::Gguf => "GGUF",
            Format::Safetensors => "safetensors",
        };
        let megabytes = format!("{:.1}", model.bytes as f64 / 1e6);
        let here = match model.lacks {
            None => "yes",
            Some(_) => "no",
        };
        // Below the table: paths and reasons are as long as they are.
        below.push(match model.lacks {
            None => format!("{}: {}", model.name, model.path.display()),
            Some(why) => format!("{}: {why}", model.name),
        });
        table.push_record([model.name, format.to_owned(), megabytes, here.to_owned()]);
    }
    let mut table = table.build();
    table
        .with(Style::blank())
        .modify(Columns::one(2), Alignment::right());
    Ok([unpadded(&table.to_string()), below.join("\n")].join("\n\n"))
}

/// Names every file with what was found; a damaged one ends in an error that says what to do.
fn verify(model: &str) -> anyhow::Result<()> {
    let mut damaged = Vec::new();
    for checked in source::verify(&ModelSpec::parse(model)?)? {
        let path = checked.path.display();
        match checked.finding {
            Finding::Genuine => terminal::print(&format!("as pinned: {path}"))?,
            Finding::Unpinned => terminal::print(&format!("no digest is pinned: {path}"))?,
            Finding::Damaged(mismatch) => damaged.push(format!("{path} is damaged ({mismatch})")),
        }
    }
    if damaged.is_empty() {
        return Ok(());
    }
    Err(Failure::Setting(format!(
        "{}: delete what is damaged and run `{} models fetch {model}`",
        damaged.join("; "),
        env!("CARGO_PKG_NAME")
    ))
    .into())
}

fn gone(model: &str, removed: &Removed) -> String {
    let megabytes = removed.bytes as f64 / 1e6;
    let left = (removed.is_left.as_ref()).map_or(String::new(), |folder| {
        format!("; what others put there is left: {}", folder.display())
    });
    format!(
        "{model}: removed {} files, {megabytes:.1} MB{left}",
        removed.files
    )
}

/// The file, its shape, what its matrices become and what its caches take.
fn show(file: &ModelFiles, weights: Option<WeightsFormat>) -> anyhow::Result<String> {
    let checkpoint = Checkpoint::of(file)?;
    let shape = checkpoint.shape()?;
    let formats = checkpoint.matrix_formats();
    let format = weights.unwrap_or_else(|| WeightsFormat::default_for(&formats));
    let identity = ModelIdentity {
        name: file.name.clone(),
        file_sha256: file.sha256.clone(),
        weights: checkpoint.weights_label(format),
    };
    let mut table = Builder::default();
    let mut row = |name: &str, value: String| table.push_record([name.to_owned(), value]);
    row("model", file.name.clone());
    row("from", file.origin.to_string());
    if let Some(path) = file.location.path() {
        row("file", path.display().to_string());
        row("bytes", file.bytes.to_string());
        row("SHA-256", file.sha256.clone());
    }
    row("weights", identity.weights.clone());
    row("kernels", format.kernels(&formats));
    row("fingerprint", identity.fingerprint());
    row("memory", memory_line(&memory::need(&checkpoint, weights)?));
    row("architecture", shape.architecture.gguf_name.to_owned());
    row("layers", layers_line(&shape));
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
            let bytes = (token_bytes * tokens) as f64;
            let size = match bytes < 1e9 {
                true => format!("{} MB", significant(bytes / 1e6, 3)),
                false => format!("{} GB", significant(bytes / 1e9, 3)),
            };
            format!("{size} at {}k", tokens / 1_000)
        };
        let lengths = LENGTHS.map(at).join(", ");
        row(
            &format!("KV cache, {dtype}"),
            format!("{token_bytes} B a token: {lengths}"),
        );
    }
    Ok(unpadded(&table.build().with(Style::blank()).to_string()))
}

/// What it takes before any cache, and where.
fn memory_line(need: &Need) -> String {
    format!(
        "{:.1} MB: {:.1} MB of matrices, {:.1} MB while the largest is made",
        need.bytes() as f64 / 1e6,
        need.matrix_bytes as f64 / 1e6,
        need.transient_bytes as f64 / 1e6,
    )
}

/// Layers, and what those see that do not see everything.
fn layers_line(shape: &ModelShape) -> String {
    let windows: Vec<usize> = shape.windows.iter().flatten().copied().collect();
    match windows.first() {
        None => shape.n_layers.to_string(),
        Some(window) => format!(
            "{}, of which {} see the last {window} tokens; their whole cache is sent",
            shape.n_layers,
            windows.len()
        ),
    }
}
