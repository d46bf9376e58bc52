//! What a decode step takes from the heap: no more than candle's matrices would, and no more for a
//! longer context. One test alone in this file, because the allocator counts the whole process.

#![expect(unsafe_code, reason = "an allocator that counts")]

mod tiny_model;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use disagg_bench::model::engine::Engine;
use disagg_bench::model::kv_cache::{KvCache, KvDtype};
use tiny_model::{LAYERS, TinyModel, Workplace};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations and bytes of `work`.
fn counted<T>(work: impl FnOnce() -> T) -> (usize, usize, T) {
    let before = (COUNT.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed));
    let result = work();
    let after = (COUNT.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed));
    (after.0 - before.0, after.1 - before.1, result)
}

/// Allocations of one of candle's matrices on one row, and of writing its input in place, for
/// which candle looks through the tensor's strides.
fn of_a_matrix() -> usize {
    let tensor = |rows| Tensor::ones((rows, 256), candle_core::DType::F32, &Device::Cpu).unwrap();
    let weights = QTensor::quantize(&tensor(64), GgmlDType::Q8_0).unwrap();
    let matrix = QMatMul::from_qtensor(weights).unwrap();
    let row = tensor(1);
    drop(matrix.forward(&row).unwrap());
    counted(|| matrix.forward(&row).unwrap()).0 + 1
}

/// Beside its matrices a step looks up the token's embedding, which takes candle nine, lists its
/// sequences and gives its logits away.
const BESIDE_MATRICES: usize = 20;

#[test]
fn a_step_takes_no_more_from_the_heap_behind_a_long_prompt_than_behind_a_short_one() {
    let place = Workplace::with(&TinyModel {
        format: GgmlDType::Q8_0,
        ..TinyModel::default()
    });
    let path = place.path("tiny.gguf");
    let engine = Engine::load(&path, "tiny", "-", None, &|_, _| {}).unwrap();
    for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16] {
        let step_behind = |length: usize| {
            let cache = KvCache::new(engine.shape().kv_layout(dtype), length + 3);
            let prompt: Vec<u32> = (0..length as u32).map(|i| i % 250).collect();
            let mut logits = engine.prefill(&prompt, None, &cache, |_| {}).unwrap();
            let mut last = (0, 0);
            for _ in 0..2 {
                let token = logits.argmax();
                let (count, bytes, next) = counted(|| engine.step(token, &cache).unwrap());
                (last, logits) = ((count, bytes), next);
            }
            last
        };
        let long = step_behind(400);
        let short = step_behind(3);
        eprintln!(
            "{dtype}: {short:?} behind 3 tokens, {long:?} behind 400; {} a matrix",
            of_a_matrix()
        );
        assert_eq!(short, long, "{dtype}");
        let matrices = (4 * LAYERS + 1) * of_a_matrix();
        assert!(
            long.0 <= matrices + BESIDE_MATRICES,
            "{dtype}: {} allocations, {matrices} of them candle's matrices'",
            long.0
        );
    }
}
