//! One prefill or one step, fenced off for an instruction counter; see `instruction_counts.sh`.
//!
//! Counts do not swing with a machine's load, so a few percent show that no clock would. What is
//! counted runs inside [`counted`] alone, behind a warm-up, on one thread.

#[path = "../tests/tiny_model/mod.rs"]
mod tiny_model;

use std::hint::black_box;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use disagg_bench::model::engine::Engine;
use disagg_bench::model::kv_cache::{KvCache, KvDtype};
use disagg_bench::model::source::{self, ModelSpec, Progress};
use tiny_model::TinyModel;

/// Tokens of the prefill, and so the context of the step: several query blocks and a rest.
const PROMPT_TOKENS: usize = 200;

/// The counter's gate: callgrind collects from its entry to its return.
#[inline(never)]
fn counted<T>(work: impl FnOnce() -> T) -> T {
    black_box(work())
}

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let [model, phase] = &arguments[..] else {
        println!("run by benches/instruction_counts.sh, with a model and a phase");
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let engine = match &model[..] {
        "tiny" => {
            let path = folder.path().join("tiny.gguf");
            let tiny = TinyModel {
                format: GgmlDType::Q8_0,
                ..TinyModel::default()
            };
            tiny.write(&path);
            load(&path, "made from a seed")
        }
        name => {
            let spec = ModelSpec::parse(name).expect("a model's name");
            let file = source::resolve(&spec, true, Progress::Quiet).expect("a fetched model");
            if phase == "find" {
                return;
            }
            let path = file.location.path().expect("a model with a file");
            load(path, &file.sha256)
        }
    };
    let prompt: Vec<u32> = (0..PROMPT_TOKENS as u32).map(|i| i % 250).collect();
    let cache = |tokens| KvCache::new(engine.shape().kv_layout(KvDtype::F16), tokens);
    let prefill = |cache: &KvCache| {
        (engine.prefill(&prompt, None, cache, |_| {})).expect("the prompt suits the model")
    };
    match &phase[..] {
        "prefill" => {
            // Another prompt than the counted one, so that no working memory has its size by now.
            let warm = cache(2);
            (engine.prefill(&prompt[..2], None, &warm, |_| {})).expect("two tokens suit it too");
            let cache = cache(PROMPT_TOKENS);
            counted(|| prefill(&cache));
        }
        "step" => {
            let cache = cache(PROMPT_TOKENS + 2);
            let token = prefill(&cache).argmax();
            engine.step(token, &cache).expect("the cache has room");
            counted(|| engine.step(token, &cache).expect("the cache has room"));
        }
        other => panic!("got phase {other}, wanted find, prefill or step"),
    }
}

fn load(path: &Path, sha256: &str) -> Engine {
    Engine::load(path, "counted", sha256, None, &|_, _| {}).unwrap_or_else(|e| panic!("{e}"))
}
