//! What a running sequence suffers while another prompt is prefilled: on one node, where both want
//! the same compute, and split, where the prompt is prefilled elsewhere and its cache arrives.

use anyhow::Context;

use super::Departure;
use super::generation::{Clock, Proofs, Request, prefill};
use super::prefill::{Connection, Outcome, PrefillNode};
use crate::metrics::interference::Moments;
use crate::metrics::{EventName, Node};
use crate::model::engine::Landing;

/// One sequence that runs and one that comes.
#[derive(Clone, Debug)]
pub struct Scene {
    /// Runs from the start.
    pub running: Request,
    /// Comes while the other one decodes.
    pub newcomer: Request,
    /// Comes once the running sequence has this many tokens.
    pub comes_after_tokens: u32,
    /// On one node the running sequence ends this many tokens after the newcomer's first one.
    pub tail_tokens: u32,
}

/// Both on this node. The newcomer's prompt is prefilled `chunk_tokens` at a time with a step of the
/// running sequence behind each chunk, or whole.
pub async fn on_one_node(
    node: &PrefillNode,
    scene: &Scene,
    chunk_tokens: Option<u32>,
) -> anyhow::Result<Moments> {
    let engine = node.compute.engine();
    let layout = engine.shape().kv_layout(scene.running.kv_dtype);
    let running_cache = node.pool.take(layout, scene.running.cache_tokens())?;
    let newcomer_cache = node.pool.take(layout, scene.newcomer.prompt.len())?;
    let (report, finished) = tokio::sync::oneshot::channel();
    let scene = scene.clone();
    node.compute.submit(move |engine| {
        let clock = Clock::start(Node::Prefill);
        let mut moments = Moments::default();
        let outcome = (|| {
            let mut ignored = |_| {};
            let mut proofs = Proofs::default();
            let running = &scene.running;
            let mut token = prefill(
                engine,
                running,
                (&*running_cache, Landing::InPlace),
                clock,
                &mut proofs,
                &|| true,
                &mut ignored,
            )?;
            moments.token(clock.now_ns(), token);
            let mut step = |moments: &mut Moments| {
                token = engine.step(token, &running_cache)?.argmax();
                moments.token(clock.now_ns(), token);
                anyhow::Ok(())
            };
            let mut ends_at = running.output_tokens as usize;
            while moments.tokens.len() < ends_at {
                if moments.tokens.len() != scene.comes_after_tokens as usize {
                    step(&mut moments)?;
                    continue;
                }
                moments.newcomer_start_ns = clock.now_ns();
                let chunk = chunk_tokens.map(|n| n as usize);
                let between = || match moments.tokens.len() < running.output_tokens as usize {
                    true => step(&mut moments),
                    false => Ok(()),
                };
                let prompt = &scene.newcomer.prompt;
                let cache = &newcomer_cache;
                let logits =
                    engine.prefill_to(Landing::InPlace, prompt, chunk, cache, |_| {}, between)?;
                logits.argmax();
                moments.newcomer_first_token_ns = clock.now_ns();
                ends_at = ends_at.min(moments.tokens.len() + scene.tail_tokens as usize);
                // Without chunks, and behind the last one, it goes on.
                if moments.tokens.len() == scene.comes_after_tokens as usize {
                    step(&mut moments)?;
                }
            }
            anyhow::Ok(())
        })();
        let _ = report.send(outcome.map(|()| moments));
    });
    finished.await.context("the compute thread failed")?
}

/// The running sequence decodes on the decode node while the newcomer is prefilled here and its
/// cache sent there, layer by layer, over a session of its own.
pub async fn split(
    node: &PrefillNode,
    scene: &Scene,
    running: &mut Connection,
    newcomer: &mut Connection,
) -> anyhow::Result<Moments> {
    let clock = Clock::start(Node::Prefill);
    let mut tokens = running.watch_tokens();
    let first = running.split(node, &scene.running, Departure::BehindPrefill);
    let second = async {
        // The decode node counts from its own first token, which is the second of all.
        let enough = |count: &u32| count + 1 >= scene.comes_after_tokens;
        (tokens.wait_for(enough).await).context("the running sequence ended early")?;
        let start_ns = clock.now_ns();
        let outcome = newcomer
            .split(node, &scene.newcomer, Departure::BehindPrefill)
            .await?;
        anyhow::Ok((start_ns, outcome))
    };
    let started_ns = clock.now_ns();
    let (first, (newcomer_start_ns, second)) = tokio::try_join!(first, second)?;
    let here = |outcome: &Outcome, name| {
        let events = outcome.events.iter();
        let here = events.filter(move |e| e.clock == Node::Prefill && e.name == name);
        here.map(|e| e.t_ns).collect::<Vec<u64>>()
    };
    let newcomer = |name| here(&second, name).into_iter();
    let first_token_ns = (newcomer(EventName::Token).min()).context("the newcomer has no token")?;
    let landed_ns = newcomer(EventName::PieceAcknowledged).max();
    let times = here(&first, EventName::Token).into_iter();
    Ok(Moments {
        tokens: first.output.tokens,
        token_ns: times.map(|t_ns| started_ns + t_ns).collect(),
        newcomer_start_ns,
        newcomer_first_token_ns: newcomer_start_ns + first_token_ns,
        newcomer_landed_ns: landed_ns.map(|t_ns| newcomer_start_ns + t_ns),
    })
}
