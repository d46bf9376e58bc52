//! One function for everything that comes from outside: it takes any bytes and must neither panic
//! nor run out of memory. `fuzz_targets/` hands them libFuzzer's bytes; the tests of the crate,
//! which include this file, hand them the corpus and proptest's.

mod model_files;

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use disagg_bench::baseline::{self, BaselineFile};
use disagg_bench::cli::{Cli, Command};
use disagg_bench::cmd;
use disagg_bench::config;
use disagg_bench::link::{KeptFit, Sweep};
use disagg_bench::metrics::Record;
use disagg_bench::terminal::Terminal;
use disagg_bench::wire::message::{
    Admit, Auth, Done, Failed, Hello, Introduction, Join, Limits, NodeIdentity, Open, Probe,
    Refuse, Start, TokenMessage, printable,
};
use disagg_bench::wire::message::{BuildIdentity, CacheLayout, LayerLayout, ModelIdentity};
use disagg_bench::wire::{
    FrameReader, FrameWriter, Header, Kind, MAX_PIECE_BYTES, Token, WireError, frame, initiate,
    respond,
};
use disagg_bench::workload::{PlainText, read_prompts};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use model_files::{
    answers_of_folder, conversations_by_tokenizer, model, model_folder, model_values, tokenizer,
};

/// A run of two prompts and both arms, as small as it can be.
const RUN: &str = include_str!("../corpus/runs/split.json");
/// A run with `--interference`.
const INTERFERENCE: &str = include_str!("../corpus/runs/interference.json");
/// What `link --format json` writes.
const SWEEP: &str = include_str!("../corpus/sweeps/loopback.json");
/// A baseline file.
const BASELINE: &str = include_str!("../corpus/baselines/tiny.json");

/// Longest that a side of the handshake waits: all of a peer's bytes are there at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// A file in a folder of this thread's own, which is used again and again.
fn file(name: &str, content: &[u8]) -> PathBuf {
    let path = folder().join(name);
    std::fs::write(&path, content).expect("the temporary folder is writable");
    path
}

fn folder() -> PathBuf {
    thread_local! {
        static FOLDER: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
    }
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| tempfile::tempdir().expect("a temporary folder"));
        folder.path().to_owned()
    })
}

/// Runs a command that reads files; what it answers is no matter.
fn command(arguments: &[&str]) {
    let quiet = ["disagg-bench", "-q"];
    let cli = Cli::try_parse_from(quiet.iter().chain(arguments)).expect("sound arguments");
    let _ = match &cli.command {
        Command::Compare(args) => cmd::compare::run(args),
        Command::Project(args) => cmd::project::run(args),
        Command::Report(args) => cmd::report::run(args, &Terminal::new(true)),
        other => unreachable!("{other:?} reads no recorded run"),
    };
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

/// A stream of frames: as it is to both sides of the handshake, and the headers in it one by one.
pub fn frames(bytes: &[u8]) {
    let _ = frame::check_prefix(bytes);
    for header in bytes.chunks_exact(frame::HEADER_BYTES) {
        let header = header.first_chunk().expect("a whole header");
        if let Ok(read) = Header::decode(header) {
            assert!(read.payload_bytes <= read.kind.max_payload_bytes());
            assert_eq!(read.encode(), *header);
        }
    }
    meet(bytes);
}

/// A session's frames with sound checksums: of each, a kind, a length, and as many bytes.
pub fn messages(mut bytes: &[u8]) {
    let mut stream = Vec::new();
    while let [kind, low, high, rest @ ..] = bytes {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (payload, rest) = rest.split_at(length);
        bytes = rest;
        let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
        message(kind, payload);
        let header = Header::new(kind, 0, 0, payload.len() as u64).sealed(payload);
        stream.extend(header.encode());
        stream.extend(payload);
    }
    meet(&stream);
}

/// Reads a control message; what was read can be written, and read once more.
fn message(kind: Kind, payload: &[u8]) {
    fn read<T: Serialize + DeserializeOwned>(payload: &[u8]) -> Option<T> {
        let message = serde_json::from_slice(payload).ok()?;
        let written = serde_json::to_vec(&message).expect("what was read can be written");
        serde_json::from_slice::<T>(&written).expect("what was written can be read");
        Some(message)
    }
    match kind {
        Kind::Hello => drop(read::<Hello>(payload).map(|hello| layer_bytes(&hello.introduction))),
        Kind::Auth => drop(read::<Auth>(payload)),
        Kind::Refuse => drop(read::<Refuse>(payload).map(|refuse| printable(&refuse.reason))),
        Kind::Join => drop(read::<Join>(payload)),
        Kind::Open => drop(read::<Open>(payload)),
        Kind::Admit => drop(read::<Admit>(payload)),
        Kind::Start => drop(read::<Start>(payload)),
        Kind::Token => drop(read::<TokenMessage>(payload)),
        Kind::Done => drop(read::<Done>(payload)),
        Kind::Failed => drop(read::<Failed>(payload).map(|failed| printable(&failed.reason))),
        Kind::Probe => drop(read::<Probe>(payload)),
        Kind::Ready | Kind::Piece | Kind::Ack | Kind::Cancel | Kind::Ping | Kind::Pong => {}
    }
}

fn layer_bytes(peer: &Introduction) -> Option<u64> {
    let layout = peer.layout.as_ref()?;
    (0..=layout.layers.len())
        .filter_map(|layer| layout.bytes_per_token(layer, 4))
        .max()
}

/// Hands a peer's bytes to both sides of the handshake, then to a reader of frames.
fn meet(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let ours = introduction();
    let token = Token::from_bytes(&[7; 16]).expect("a token of sixteen bytes");
    runtime.expect("a runtime").block_on(async {
        for token in [None, Some(&token)] {
            let new = || (FrameReader::new(bytes), FrameWriter::new(tokio::io::sink()));
            let (mut reader, mut writer) = new();
            let _ = initiate(&mut reader, &mut writer, &ours, token, PATIENCE).await;
            let (mut reader, mut writer) = new();
            let _ = respond(&mut reader, &mut writer, &ours, token, PATIENCE).await;
        }
        let _ = read_all(FrameReader::new(bytes)).await;
    });
}

async fn read_all(mut reader: FrameReader<&[u8]>) -> Result<(), WireError> {
    loop {
        let header = reader.read_header().await?;
        match header.kind {
            Kind::Piece => {
                let mut place = vec![0; header.payload_bytes as usize];
                reader.read_payload_into(&header, &mut place).await?;
            }
            Kind::Done => drop(reader.read_control::<Done>(&header).await?),
            _ => reader.discard_payload(&header).await?,
        }
    }
}

fn introduction() -> Introduction {
    let layer = LayerLayout {
        n_kv_heads: 1,
        head_dim: 2,
        window: None,
    };
    Introduction {
        build: BuildIdentity {
            tool_version: "0.1.0".into(),
            git_revision: "abc".into(),
            target: "x86_64".into(),
            instruction_set: "avx2".into(),
            threads: 1,
        },
        node: NodeIdentity {
            host: "a".into(),
            machine: "m".into(),
        },
        model: Some(ModelIdentity {
            name: "tiny".into(),
            weights: "f32".into(),
            fingerprint: "f00d".into(),
        }),
        layout: Some(CacheLayout::new(vec![layer; 2])),
        limits: Limits {
            max_tokens: 64,
            max_piece_bytes: MAX_PIECE_BYTES,
            max_cache_bytes: 1 << 20,
        },
        environment: Value::Null,
    }
}

/// A `config.json` for `project --model`.
pub fn config(bytes: &[u8]) {
    let (config, out) = (file("config.json", bytes), folder().join("out"));
    for prompt in ["1", "100000000"] {
        let engine = ["--prompt", prompt, "--prefill-tokens-per-s", "1e9"];
        let project = ["project", "--model", text(&config), "-o", text(&out)];
        command(&[&project[..], &engine, &["--kv-dtype", "f32"]].concat());
    }
}

/// `disagg-bench.toml` or the notebook's `environment_config.json`, as the first byte says.
pub fn settings(bytes: &[u8]) {
    let [choice, content @ ..] = bytes else {
        return;
    };
    let here = tempfile::tempdir_in(folder()).expect("a temporary folder");
    let name = match choice % 2 {
        0 => "disagg-bench.toml",
        _ => "environment_config.json",
    };
    std::fs::write(here.path().join(name), content).expect("the temporary folder is writable");
    for subcommand in ["split", "serve-decode", "project", "link"] {
        let argv = ["disagg-bench".into(), subcommand.into()];
        let _ = config::resolve(&argv, |_| None, here.path());
    }
}

/// A file of prompts, or what is piped into stdin.
pub fn prompts(bytes: &[u8]) {
    for plain in [PlainText::Accepted, PlainText::Refused] {
        if let Err(error) = read_prompts(bytes, "prompts.jsonl", plain) {
            assert!(!error.to_string().is_empty());
        }
    }
}

/// A `run.json`, in every command that reads one.
pub fn runs(bytes: &[u8]) {
    let run = file("run.json", bytes);
    if Record::read(&run).is_err() {
        return;
    }
    let sound = file("sound.json", RUN.as_bytes());
    let (run, sound, folder) = (text(&run), text(&sound), folder());
    let (report, overlay, out) = (
        folder.join("report"),
        folder.join("overlay"),
        folder.join("out"),
    );
    let (report, overlay, out) = (text(&report), text(&overlay), text(&out));
    command(&["report", run, "--out", report]);
    command(&["report", sound, run, "--out", overlay]);
    for format in ["table", "md", "json"] {
        let gate = [
            "--fail-on",
            "split.e2e_ms>5%",
            "--format",
            format,
            "-o",
            out,
        ];
        command(&[&["compare", run, sound][..], &gate].concat());
        command(&[&["compare", sound, run][..], &gate].concat());
    }
    for format in ["table", "json"] {
        let faster = [
            "--prefill-tokens-per-s",
            "1e9",
            "--format",
            format,
            "-o",
            out,
        ];
        command(&[&["project", run, "--gbps", "0.1,1e9"][..], &faster].concat());
        command(&[&["project", run, "--against", sound][..], &faster].concat());
        command(&[&["project", sound, "--against", run][..], &faster].concat());
    }
}

/// A sound run in which values were exchanged as the bytes say.
pub fn run_values(bytes: &[u8]) {
    let Some((choice, edits)) = bytes.split_first() else {
        return;
    };
    match choice % 4 {
        0 => runs(&edited(INTERFERENCE, edits)),
        1 => sweeps(&edited(SWEEP, edits)),
        2 => baselines(&edited(BASELINE, edits)),
        _ => runs(&edited(RUN, edits)),
    }
}

/// What stands in the place of a value; none takes it out.
fn replacement(number: u8, old: &Value) -> Option<Value> {
    let values = [
        json!(0),
        json!(1),
        json!(-1),
        json!(2),
        json!(u32::MAX),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(i64::MAX),
        json!(1u64 << 53),
        json!(1u64 << 40),
        json!(1e308),
        json!(-1e308),
        json!(5e-324),
        json!(0.5),
        json!(""),
        json!("\u{0}\u{1b}[2J<&|`"),
        json!([]),
        json!({}),
        json!(true),
        Value::Null,
    ];
    match values.get(usize::from(number) % (values.len() + 2)) {
        Some(value) => Some(value.clone()),
        None if usize::from(number) % (values.len() + 2) == values.len() => None,
        // A list twice over: the same events, samples or prompts again.
        None => Some(match old {
            Value::Array(items) => Value::Array([&items[..], &items[..]].concat()),
            other => other.clone(),
        }),
    }
}

/// JSON with values exchanged: of each exchange two bytes say which value, one what it becomes.
fn edited(sound: &str, edits: &[u8]) -> Vec<u8> {
    let mut root: Value = serde_json::from_str(sound).expect("the corpus is sound");
    for edit in edits.chunks_exact(3) {
        let mut pointers = Vec::new();
        collect(&root, String::new(), &mut pointers);
        let which = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % pointers.len();
        let pointer = &pointers[which];
        let Some(value) = root.pointer_mut(pointer) else {
            continue;
        };
        if let Some(new) = replacement(edit[2], value) {
            *value = new;
        } else if let Some((parent, key)) = pointer.rsplit_once('/')
            && let Some(Value::Object(parent)) = root.pointer_mut(parent)
        {
            parent.remove(key);
        }
    }
    serde_json::to_vec(&root).expect("JSON from JSON")
}

/// JSON pointers of a value and all that is in it.
fn collect(value: &Value, pointer: String, into: &mut Vec<String>) {
    match value {
        Value::Object(entries) => (entries.iter())
            .for_each(|(key, value)| collect(value, format!("{pointer}/{key}"), into)),
        Value::Array(items) => (items.iter().enumerate())
            .for_each(|(i, value)| collect(value, format!("{pointer}/{i}"), into)),
        _ => {}
    }
    into.push(pointer);
}

/// What `link` writes, where it is read: as a kept fit and in projections.
pub fn sweeps(bytes: &[u8]) {
    let path = file("link.json", bytes);
    let Ok(sweep) = Sweep::read(&path) else {
        return;
    };
    let _ = sweep.to_terminal();
    if let Ok(kept) = KeptFit::read(&path, 1) {
        let _ = kept.check(&sweep.socket, "tcp");
    }
    let sound = file("sound.json", RUN.as_bytes());
    let (fit, out) = (text(&path), folder().join("out"));
    let fit = ["--link-fit", fit, "-o", text(&out)];
    command(&[&["project", text(&sound)][..], &fit].concat());
    let engine = ["--prompt", "100000000", "--prefill-tokens-per-s", "1e9"];
    command(&[&["project", "--model", "llama-3.1-70b"][..], &engine, &fit].concat());
}

/// A baseline file, beside a run.
pub fn baselines(bytes: &[u8]) {
    let path = file("baseline_metrics.json", bytes);
    if let Ok(baseline) = BaselineFile::read(&path) {
        let mut record = Record::read(&file("sound.json", RUN.as_bytes())).expect("a sound run");
        let ours = baseline::Config::of(&record, "f16", None);
        let _ = baseline::find(Some(&path), &ours, &[], |_| {});
        record.baseline = Some(baseline.used_by(&record, &path, true));
        let _ = disagg_bench::report::to_terminal(&record);
        let _ = disagg_bench::report::to_markdown(&record);
    }
}
