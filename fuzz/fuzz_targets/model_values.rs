#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| disagg_bench_fuzz::model_values(bytes));
