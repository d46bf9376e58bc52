//! What a lossy way over the wire costs the answer: teacher forcing on the prefill node alone.
//!
//! The landed digest proves which bytes the decode node started from, so what is computed here
//! from the same bytes is what it computes, as far as both nodes compute the same bits.

use anyhow::Context;
use tokio::sync::oneshot;

use super::generation::Request;
use super::prefill::PrefillNode;
use super::wire_dtype;
use crate::metrics::Lossy;
use crate::model::cache_pool::Pooled;
use crate::model::engine::Engine;
use crate::model::logits::Logits;

/// Runs the single arm's answer once more from the exact cache, and beside it the same tokens from
/// the cache as it is behind the wire. `None` where prefill alone answers the request.
pub async fn lossy(node: &PrefillNode, request: &Request) -> anyhow::Result<Option<Lossy>> {
    let layout = node.compute.engine().shape().kv_layout(request.kv_dtype);
    let exact = node.pool.take(layout, request.cache_tokens())?;
    let carried = node.pool.take(layout, request.cache_tokens())?;
    let work = request.clone();
    let (mut report, finished) = oneshot::channel();
    node.compute.submit(move |engine| {
        let followed = follow(engine, &work, &exact, &carried, &mut report);
        let _ = report.send(followed);
    });
    finished.await.context("the compute thread failed")?
}

/// Ends early when nobody waits for the report any more.
fn follow(
    engine: &Engine,
    request: &Request,
    exact: &Pooled,
    carried: &Pooled,
    report: &mut oneshot::Sender<anyhow::Result<Option<Lossy>>>,
) -> anyhow::Result<Option<Lossy>> {
    let chunk = request.chunk_tokens.map(|n| n as usize);
    let first = engine.prefill(&request.prompt, chunk, exact, |_| {})?;
    (request.wire_rows).carry(exact, request.prompt.len(), carried)?;
    let mut token = first.argmax();
    let mut steps = Steps::default();
    for _ in 1..request.output_tokens {
        if request.ends_with(token, engine) || report.is_closed() {
            break;
        }
        let single = engine.step(token, exact)?;
        steps.add(&single, &engine.step(token, carried)?);
        token = single.argmax();
    }
    Ok(steps.lossy(request))
}

/// What the steps of one answer have come to.
#[derive(Default)]
struct Steps {
    divergences_nats: Vec<f64>,
    same_top: u32,
    /// The first token comes from prefill, which no wire has touched.
    same_before_the_first_difference: u32,
}

impl Steps {
    fn add(&mut self, single: &Logits, lossy: &Logits) {
        let steps = self.divergences_nats.len() as u32;
        self.divergences_nats.push(single.divergence_nats(lossy));
        if single.argmax() == lossy.argmax() {
            if self.same_before_the_first_difference == steps {
                self.same_before_the_first_difference += 1;
            }
            self.same_top += 1;
        }
    }

    fn lossy(&self, request: &Request) -> Option<Lossy> {
        let all = &self.divergences_nats;
        if all.is_empty() {
            return None;
        }
        let finite = |nats: f64| nats.is_finite().then_some(nats);
        // NaN is no largest value to `f64::max`; without a sign it is the largest here.
        let largest = all.iter().map(|nats| nats.abs()).max_by(f64::total_cmp);
        Some(Lossy {
            wire_dtype: wire_dtype(request.wire_rows, request.kv_dtype),
            steps: all.len() as u32,
            kl_mean_nats: finite(all.iter().sum::<f64>() / all.len() as f64),
            kl_max_nats: largest.and_then(finite),
            same_top_pct: 100.0 * f64::from(self.same_top) / all.len() as f64,
            same_tokens: 1 + self.same_before_the_first_difference,
        })
    }
}
