use disagg_bench::model::{engine::Engine, kv_cache::*, weights::WeightsFormat};
use std::time::Instant;
fn main() -> anyhow::Result<()> {
    let path = std::env::args().nth(1).unwrap();
    let w = match std::env::args().nth(2).as_deref() {
        Some("f32") => Some(WeightsFormat::F32),
        Some("as-is") => Some(WeightsFormat::AsIs),
        _ => None,
    };
    let t = Instant::now();
    let e = Engine::load(path.as_ref(), "x", w, &|_, _| {})?;
    println!(
        "load {:?} {} {}",
        t.elapsed(),
        e.identity.weights,
        e.weight_bytes()
    );
    let text = e.tokenizer.chat(&[(
        "user",
        "Explain container orchestration systems like Kubernetes.",
    )])?;
    println!("{text}");
    let ids = e.tokenizer.encode(&text)?;
    println!("{ids:?}");
    for dtype in [KvDtype::F16, KvDtype::F32] {
        let cache = KvCache::new(e.shape().kv_layout(dtype), 2048);
        let mut l = e.prefill(&ids, None, &cache, |_| {})?;
        let mut out = vec![];
        for _ in 0..40 {
            let t = l.argmax();
            out.push(t);
            l = e.step(t, &cache)?;
        }
        println!("{}", e.tokenizer.decode(&out)?);
        for n in [128usize, 512, 1024, 2000] {
            let toks: Vec<u32> = (0..n as u32).map(|i| 100 + (i * 37) % 40000).collect();
            let mut best = f64::MAX;
            let mut dec = f64::MAX;
            for _ in 0..3 {
                let mut cache = KvCache::new(e.shape().kv_layout(dtype), 2048);
                cache.reset();
                let t = Instant::now();
                let l = e.prefill(&toks, None, &cache, |_| {})?;
                best = best.min(t.elapsed().as_secs_f64());
                let mut tok = l.argmax();
                let t = Instant::now();
                for _ in 0..16 {
                    tok = e.step(tok, &cache)?.argmax();
                }
                dec = dec.min(t.elapsed().as_secs_f64() / 16.0);
            }
            println!(
                "{dtype} {n}: prefill {:.0} tok/s, decode {:.1} tok/s",
                n as f64 / best,
                1.0 / dec
            );
        }
    }
    Ok(())
}
