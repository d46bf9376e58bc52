//! A tiny Llama made in code from a seed, and the program under test run on it.
//!
//! Nothing is downloaded, every port is the system's choice, and every process that is started
//! is ended and waited for.
#![allow(
    dead_code,
    reason = "compiled into every test file, and none of them needs all of it"
)]

pub mod fault_proxy;
pub mod proxy;
pub mod running;

use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use disagg_bench::metrics::Record;
use disagg_bench::metrics::summary::Summary;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

pub use running::{DecodeNode, Ended};

/// Longest that anything may take on a busy machine; a test that waits this long has failed.
pub const DEADLINE: Duration = Duration::from_secs(60);

const HIDDEN: usize = 64;
const FEED_FORWARD: usize = 128;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = HIDDEN / HEADS;

/// Layers of a tiny model, and so pieces of each of its caches: none is as large as a piece.
pub const LAYERS: usize = 3;

/// The most tokens that a sequence of it may have.
pub const CONTEXT_TOKENS: usize = 512;

/// Pairs of the byte-level BPE, in order of rank; `Ġ` is the space.
const MERGES: [&str; 6] = ["t h", "Ġ th", "e r", "Ġth e", "i n", "o n"];

/// Control tokens; the first ends an answer.
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

const CHAT_TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}";

/// What a tiny model is made from.
pub struct TinyModel {
    /// Seed of its weights.
    pub seed: u64,
    /// Format of its matrices.
    pub format: GgmlDType,
    /// Metadata that replace or join the usual ones.
    pub metadata: Vec<(&'static str, Value)>,
}

impl Default for TinyModel {
    fn default() -> Self {
        Self {
            seed: 1,
            format: GgmlDType::F32,
            metadata: Vec::new(),
        }
    }
}

impl TinyModel {
    /// Writes the GGUF file.
    pub fn write(&self, path: &Path) {
        let mut metadata = metadata();
        for (key, value) in &self.metadata {
            metadata.retain(|(other, _)| other != key);
            metadata.push((key, value.clone()));
        }
        let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (*k, v)).collect();
        let tensors = self.tensors();
        let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(n, t)| (&n[..], t)).collect();
        let mut file = std::fs::File::create(path).unwrap();
        gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    }

    fn tensors(&self) -> Vec<(String, QTensor)> {
        let mut random = StdRng::seed_from_u64(self.seed);
        let vocabulary = vocabulary().len();
        let kv = KV_HEADS * HEAD_DIM;
        let mut tensors = Vec::new();
        // Attention and feed-forward are strong against the residual stream, and the output is no
        // copy of the embedding: so the next token hangs on the whole prompt, not on the last one.
        let mut matrix = |name: String, rows: usize, width: usize, gain: f32| {
            let scale = gain * (3.0 / width as f32).sqrt();
            let values: Vec<f32> = (0..rows * width)
                .map(|_| random.random_range(-scale..scale))
                .collect();
            let tensor = Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap();
            tensors.push((name, QTensor::quantize(&tensor, self.format).unwrap()));
        };
        matrix("token_embd.weight".into(), vocabulary, HIDDEN, 8.0);
        matrix("output.weight".into(), vocabulary, HIDDEN, 1.0);
        for layer in 0..LAYERS {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            matrix(name("attn_q"), HIDDEN, HIDDEN, 2.0);
            matrix(name("attn_k"), kv, HIDDEN, 2.0);
            matrix(name("attn_v"), kv, HIDDEN, 2.0);
            matrix(name("attn_output"), HIDDEN, HIDDEN, 2.0);
            matrix(name("ffn_gate"), FEED_FORWARD, HIDDEN, 2.0);
            matrix(name("ffn_up"), FEED_FORWARD, HIDDEN, 1.0);
            matrix(name("ffn_down"), HIDDEN, FEED_FORWARD, 1.0);
        }
        let mut ones = |name: String| {
            let tensor = Tensor::ones(HIDDEN, candle_core::DType::F32, &Device::Cpu).unwrap();
            tensors.push((name, QTensor::quantize(&tensor, GgmlDType::F32).unwrap()));
        };
        ones("output_norm.weight".into());
        for layer in 0..LAYERS {
            ones(format!("blk.{layer}.attn_norm.weight"));
            ones(format!("blk.{layer}.ffn_norm.weight"));
        }
        tensors
    }
}

fn metadata() -> Vec<(&'static str, Value)> {
    let text = |text: &str| Value::String(text.into());
    let count = |n: usize| Value::U32(n as u32);
    let texts = |all: &[String]| Value::Array(all.iter().cloned().map(Value::String).collect());
    let vocabulary = vocabulary();
    let types = (0..vocabulary.len()).map(|id| match id < vocabulary.len() - SPECIAL.len() {
        true => Value::I32(1),
        false => Value::I32(3),
    });
    vec![
        ("general.architecture", text("llama")),
        ("general.name", text("Tiny Test Llama")),
        ("llama.block_count", count(LAYERS)),
        ("llama.embedding_length", count(HIDDEN)),
        ("llama.feed_forward_length", count(FEED_FORWARD)),
        ("llama.attention.head_count", count(HEADS)),
        ("llama.attention.head_count_kv", count(KV_HEADS)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.context_length", count(CONTEXT_TOKENS)),
        ("llama.rope.dimension_count", count(HEAD_DIM)),
        ("llama.rope.freq_base", Value::F32(10_000.0)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("smollm")),
        ("tokenizer.ggml.tokens", texts(&vocabulary)),
        ("tokenizer.ggml.token_type", Value::Array(types.collect())),
        ("tokenizer.ggml.merges", texts(&MERGES.map(str::to_owned))),
        (
            "tokenizer.ggml.eos_token_id",
            count(vocabulary.len() - SPECIAL.len()),
        ),
        ("tokenizer.chat_template", text(CHAT_TEMPLATE)),
    ]
}

/// Bytes in GPT-2's alphabet, what the merges make of them, and the control tokens.
fn vocabulary() -> Vec<String> {
    let bytes = byte_alphabet().into_iter().map(String::from);
    let merged = MERGES.iter().map(|pair| pair.replace(' ', ""));
    let special = SPECIAL.iter().map(|text| text.to_string());
    bytes.chain(merged).chain(special).collect()
}

/// A printable character for every byte: itself where it is printable, else the next free one
/// from 256 on.
fn byte_alphabet() -> Vec<char> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut free = 256;
    (0..256)
        .map(|byte| {
            let code = match printable(byte) {
                true => byte,
                false => {
                    free += 1;
                    free - 1
                }
            };
            char::from_u32(code).unwrap()
        })
        .collect()
}

/// A folder of its own with a tiny model in it, where the program runs.
pub struct Workplace {
    folder: TempDir,
}

impl Workplace {
    /// With the usual model.
    pub fn new() -> Self {
        Self::with(&TinyModel::default())
    }

    /// With a model.
    pub fn with(model: &TinyModel) -> Self {
        let folder = tempfile::tempdir().unwrap();
        model.write(&folder.path().join("tiny.gguf"));
        Self { folder }
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file into the folder.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// The program with these arguments, on one thread unless they say otherwise.
    pub fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_disagg-bench"));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            let names_a_proxy = name.to_ascii_lowercase().ends_with("_proxy");
            let is_setting = name.starts_with("DISAGG_") || name.starts_with("HF_");
            if is_setting || names_a_proxy || name == "RUST_LOG" {
                command.env_remove(name);
            }
        }
        command
            .args(arguments)
            .current_dir(self.folder.path())
            // Many of these run at once: more threads would spin against each other.
            .env("RAYON_NUM_THREADS", "1")
            // Peers that never come are many here, and each would be waited for.
            .env("DISAGG_RETRY_FOR", "0")
            .env("DISAGG_CACHE", self.path("no-cache"))
            .env("HF_HOME", self.path("no-hub"))
            // Nothing leaves this machine.
            .env("HF_HUB_OFFLINE", "1");
        command
    }

    /// The program on the tiny model.
    pub fn on_model(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.command(arguments);
        command.args(["--model", "tiny.gguf"]);
        command
    }

    /// Runs the program on the tiny model to its end.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(self.on_model(arguments))
    }

    /// Starts `serve-decode` on a free port of loopback and waits until it listens.
    pub fn serve(&self, arguments: &[&str]) -> DecodeNode {
        let mut command = self.on_model(&["serve-decode", "--listen", "127.0.0.1:0"]);
        command.args(arguments);
        DecodeNode::start(command)
    }

    /// The record of a run with `--out NAME`.
    pub fn record(&self, out: &str) -> Record {
        Record::read(&self.path(out).join("run.json")).unwrap()
    }

    /// The summary of a run with `--out NAME`.
    pub fn summary(&self, out: &str) -> Summary {
        let text = std::fs::read_to_string(self.path(out).join("summary.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

/// Asks again and again until there is an answer; the deadline is a failure.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = std::time::Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Says on the terminal, where the test harness cannot swallow it, that a test could not run here.
pub fn skipped(what: &str, why: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED {what}: {why}");
}
