//! The decoder: a prefill of 128 tokens and a step behind them, of one sequence and of several at
//! once, on the tests' tiny seeded model and, where it lies in the model cache, on the default
//! model. Nothing is fetched.
//!
//! Run with `cargo bench --bench decoder`; `RAYON_NUM_THREADS` and `CANDLE_NUM_THREADS` set the
//! threads. The tiny model shows what is paid beside the arithmetic, the default model what a
//! user waits for.

#[path = "../tests/tiny_model/mod.rs"]
mod tiny_model;

use std::path::Path;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use disagg_bench::model::cache_pool::{CachePool, Pooled};
use disagg_bench::model::engine::Engine;
use disagg_bench::model::kv_cache::{KvCache, KvDtype};
use disagg_bench::model::source::{self, ModelSpec, Progress};
use tiny_model::TinyModel;

/// Tokens of the prompt, and so the context of the step.
const PROMPT_TOKENS: usize = 128;

/// Memory for caches, in bytes: a few of the default model.
const POOL_BYTES: usize = 256 << 20;

/// Sequences that are stepped together.
const BATCHES: [usize; 4] = [1, 2, 4, 8];

/// Every K/V type that the decoder computes with.
const KV_DTYPES: [KvDtype; 3] = [KvDtype::F32, KvDtype::F16, KvDtype::Bf16];

fn measure(criterion: &mut Criterion, name: &str, engine: &Engine) {
    let vocabulary = engine.shape().vocabulary as u32;
    let prompt: Vec<u32> = (0..PROMPT_TOKENS as u32)
        .map(|i| i * 37 % vocabulary)
        .collect();
    for kv_dtype in KV_DTYPES {
        let layout = engine.shape().kv_layout(kv_dtype);
        let pool = CachePool::new(POOL_BYTES);
        let empty = || (pool.take(layout, PROMPT_TOKENS + 1)).expect("the pool holds a few caches");
        let prefill = |cache: &Pooled| {
            (engine.prefill(&prompt, None, cache, |_| {})).expect("the prompt suits the model")
        };
        let full = empty();
        let next = prefill(&full).argmax();

        let mut group = criterion.benchmark_group(format!("decoder/{name}"));
        group.throughput(Throughput::Elements(PROMPT_TOKENS as u64));
        group.bench_function(BenchmarkId::new("prefill-128", kv_dtype), |bencher| {
            bencher.iter(|| prefill(&empty()));
        });
        for batch in BATCHES {
            let name = match batch {
                1 => "step-at-128".to_string(),
                several => format!("step-of-{several}-at-128"),
            };
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(BenchmarkId::new(name, kv_dtype), |bencher| {
                // A step makes its caches longer, so each has copies; the copying is not timed.
                bencher.iter_batched(
                    || -> Vec<Pooled> { (0..batch).map(|_| copy_of(&full, empty())).collect() },
                    |caches| {
                        let steps: Vec<(u32, &KvCache)> =
                            caches.iter().map(|cache| (next, &**cache)).collect();
                        (engine.step_batch(&steps), caches)
                    },
                    BatchSize::PerIteration,
                );
            });
        }
        group.finish();
    }
}

/// The prompt's K and V in an empty cache.
fn copy_of(full: &Pooled, empty: Pooled) -> Pooled {
    for layer in 0..full.layout().n_layers {
        let mut claim = (empty.claim(layer, 0, PROMPT_TOKENS)).expect("the cache is empty");
        claim.copy_from_slice(full.read(layer, 0..PROMPT_TOKENS).expect("it is full"));
        claim.land();
    }
    empty
}

fn load(path: &Path, sha256: &str) -> Engine {
    Engine::load(path, "bench", sha256, None, &|_, _| {}).unwrap_or_else(|error| panic!("{error}"))
}

fn tiny(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("tiny.gguf");
    TinyModel::default().write(&path);
    measure(criterion, "tiny", &load(&path, "made from a seed"));
}

fn default_model(criterion: &mut Criterion) {
    let spec = ModelSpec::default();
    match source::resolve(&spec, true, Progress::Quiet) {
        Ok(file) => measure(
            criterion,
            &file.name,
            &load(
                file.location.path().expect("a model with a file"),
                &file.sha256,
            ),
        ),
        Err(_) => println!(
            "decoder/{spec}: skipped, for the model is not in the cache: `disagg-bench baseline` \
             fetches it"
        ),
    }
}

criterion_group! {
    name = benches;
    // A prefill of the default model takes a tenth of a second.
    config = Criterion::default().sample_size(30);
    targets = tiny, default_model
}
criterion_main!(benches);
