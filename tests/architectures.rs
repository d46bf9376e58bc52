//! Every architecture against transformers, on the tiny models of `architectures/`: logits in f32
//! within 1e-4, the same greedy tokens; and a split of each gives the bits of one node.

mod tiny_model;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use disagg_bench::metrics::{Agreement, Status};
use disagg_bench::model::engine::Engine;
use disagg_bench::model::kv_cache::{KvCache, KvDtype};
use disagg_bench::model::logits::Logits;
use disagg_bench::model::weights::WeightsFormat;
use serde::Deserialize;
use tiny_model::Workplace;

/// Largest distance of a logit of f32 weights. Measured: 1.22e-5 at most, printed with
/// `--nocapture`; transformers' own rounding is at most 2e-5.
const TOLERANCE: f32 = 1e-4;

/// Folders with safetensors.
const FOLDERS: [&str; 8] = [
    "llama-linear-rope",
    "llama2",
    "llama3",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm2",
    "tinyllama",
];

/// GGUF files: architectures in f32, and one model in the formats of quantised ones.
const GGUF_FILES: [&str; 16] = [
    "llama-linear-rope",
    "llama-wide-q4_k",
    "llama-wide-q5_k",
    "llama-wide-q6_k",
    "llama2",
    "llama2-bf16",
    "llama2-f16",
    "llama2-q4_0",
    "llama2-q4_1",
    "llama2-q5_0",
    "llama2-q5_1",
    "llama2-q8_0",
    "llama3",
    "mistral",
    "qwen2",
    "qwen3",
];

#[derive(Deserialize)]
struct Expected {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    text: String,
    ids: Vec<u32>,
    /// After the prompt, one for each entry of the vocabulary.
    logits: Vec<f32>,
    greedy_tokens: Vec<u32>,
    /// Those that chose the last of the greedy tokens.
    last_logits: Vec<f32>,
}

fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/architectures")
        .join(name)
}

/// Paths of models and what transformers computes with them.
fn cases() -> Vec<(PathBuf, Expected)> {
    let folders = FOLDERS.map(|name| (place(name), place(name).join("expected.json")));
    let files = GGUF_FILES.map(|name| {
        let path = |kind: &str| place(&format!("{name}.{kind}"));
        (path("gguf"), path("json"))
    });
    let read = |(model, expected): (PathBuf, PathBuf)| {
        let text = fs::read_to_string(expected).unwrap();
        (model, serde_json::from_str(&text).unwrap())
    };
    folders.into_iter().chain(files).map(read).collect()
}

fn distance(got: &Logits, want: &[f32]) -> f32 {
    assert_eq!(got.0.len(), want.len());
    let pairs = got.0.iter().zip(want);
    pairs.map(|(g, w)| (g - w).abs()).fold(0.0, f32::max)
}

#[test]
fn no_model_in_the_folder_is_left_out() {
    let entries = fs::read_dir(place("")).unwrap().map(|e| e.unwrap().path());
    let models = entries.filter(|p| p.is_dir() || p.extension().is_some_and(|e| e == "gguf"));
    let found: BTreeSet<PathBuf> = models.collect();
    let tested: BTreeSet<PathBuf> = cases().into_iter().map(|(model, _)| model).collect();
    assert_eq!(found, tested);
}

#[test]
fn logits_and_greedy_tokens_are_those_of_transformers() {
    for (path, expected) in cases() {
        let engine = Engine::load(&path, "tiny", "", Some(WeightsFormat::F32), &|_, _| {})
            .unwrap_or_else(|e| panic!("{e}"));
        let mut largest = 0f32;
        for prompt in &expected.prompts {
            assert_eq!(engine.tokenizer.encode(&prompt.text).unwrap(), prompt.ids);
            let (ids, greedy) = (&prompt.ids, &prompt.greedy_tokens);
            let layout = engine.shape().kv_layout(KvDtype::F32);
            let cache = KvCache::new(layout, ids.len() + greedy.len());
            let mut logits = engine.prefill(ids, None, &cache, |_| {}).unwrap();
            largest = largest.max(distance(&logits, &prompt.logits));
            for (i, token) in greedy.iter().enumerate() {
                assert_eq!(logits.argmax(), *token, "{}: token {i}", path.display());
                if i + 1 < greedy.len() {
                    logits = engine.step(*token, &cache).unwrap();
                }
            }
            largest = largest.max(distance(&logits, &prompt.last_logits));
        }
        println!("{}: {largest:e}", path.display());
        assert!(largest <= TOLERANCE, "{}: {largest:e}", path.display());
    }
}

#[test]
fn a_split_gives_the_bits_of_one_node() {
    let workplace = Workplace::new();
    for (path, _) in cases() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let command = workplace.command(&[
            "split",
            "--model",
            path.to_str().unwrap(),
            "--prompt-tokens",
            "5,90",
            "--output-tokens",
            "8",
            "--repeats",
            "1",
            "--warmup",
            "0",
            "--out",
            name,
        ]);
        let ended = tiny_model::Ended::of(command);
        assert!(ended.status.success(), "{name}: {}", ended.stderr);
        let record = workplace.record(name);
        assert_eq!(record.run.status, Status::Complete, "{name}");
        for case in &record.cases {
            let check = case.check.as_ref().unwrap();
            assert_eq!(check.outputs, Some(Agreement::Identical), "{name}");
        }
    }
}
