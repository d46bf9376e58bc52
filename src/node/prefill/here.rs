//! What this node computes of a request: all of it, or the prefill alone.

use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::Context;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;

use super::{Outcome, PrefillNode, RemoteAnswer};
use crate::metrics::{Event, EventName, Finish, Node, Output};
use crate::model::cache_pool::Pooled;
use crate::model::engine::Landing;
use crate::node::generation::{self, Clock, Emission, Generation, Proofs, Request};
use crate::wire::WireBytes;

/// Runs one request wholly on this node.
pub async fn single(node: &PrefillNode, request: &Request) -> anyhow::Result<Outcome> {
    let layout = node.compute.engine().shape().kv_layout(request.kv_dtype);
    let cache = Arc::new(node.pool.take(layout, request.cache_tokens())?);
    let (report, finished) = oneshot::channel();
    let mut report = Some(report);
    let clock = Clock::start(Node::Prefill);
    let (mut events, mut tokens) = (vec![clock.event(EventName::RequestStart)], Vec::new());
    let mut generation = Generation::new(request.clone(), cache, clock);
    node.compute.submit_turns(move |engine| {
        let mut emit = |emission| match emission {
            Emission::Event(event) => events.push(event),
            Emission::Token { index, token } => {
                events.push(clock.indexed(EventName::Token, index));
                tokens.push(token);
            }
            Emission::LayerDone(_) => {}
        };
        let Some(ended) = generation.advance(engine, &|| true, &mut emit).transpose() else {
            return ControlFlow::Continue(());
        };
        let all = (std::mem::take(&mut events), std::mem::take(&mut tokens));
        let ended = ended.map(|finish| (finish, all, generation.proofs()));
        let _ = report.take().map(|report| report.send(ended));
        ControlFlow::Break(())
    });
    let (finish, (events, tokens), steps) =
        finished.await.context("the compute thread failed")??;
    let output = Output {
        text: node.compute.engine().tokenizer.decode(&tokens)?,
        tokens,
        finish,
        steps,
        sent_cache_digest: None,
        landed_cache_digest: None,
    };
    Ok(Outcome::new(output, events, WireBytes::default()))
}

/// Starts prefill on the compute thread; its emissions end when it does, then the logits of the
/// first token come, to be proven when nothing is timed any more.
pub(super) fn start_prefill(
    node: &PrefillNode,
    request: &Request,
    cache: &Arc<Pooled>,
    clock: Clock,
) -> (
    UnboundedReceiver<Emission>,
    oneshot::Receiver<anyhow::Result<Proofs>>,
) {
    let (sender, emissions) = unbounded_channel();
    let (report, prefilled) = oneshot::channel();
    let (work, cache) = (request.clone(), Arc::clone(cache));
    node.compute.submit(move |engine| {
        let mut proofs = Proofs::default();
        let mut emit = |emission| {
            // The token's time is taken here, where it is known first, not where it is handled.
            if let Emission::Token { index, .. } = emission {
                let event = clock.indexed(EventName::Token, index);
                let _ = sender.send(Emission::Event(event));
            }
            let _ = sender.send(emission);
        };
        let place = (&**cache, Landing::Host);
        let outcome = generation::prefill(
            engine,
            &work,
            place,
            clock,
            &mut proofs,
            &|| true,
            &mut emit,
        );
        drop((sender, cache));
        let _ = report.send(outcome.map(|_| proofs));
    });
    (emissions, prefilled)
}

/// The answer of a request that needs no decode node.
pub(super) async fn first_token_alone(
    node: &PrefillNode,
    request: &Request,
    mut emissions: UnboundedReceiver<Emission>,
    events: &mut Vec<Event>,
) -> anyhow::Result<RemoteAnswer> {
    let mut tokens = Vec::new();
    while let Some(emission) = emissions.recv().await {
        match emission {
            Emission::Event(event) => events.push(event),
            Emission::Token { token, .. } => tokens.push(token),
            Emission::LayerDone(_) => {}
        }
    }
    let ended = |token: &u32| request.ends_with(*token, node.compute.engine());
    Ok(RemoteAnswer {
        finish: match tokens.iter().any(ended) {
            true => Finish::EndOfSequence,
            false => Finish::Length,
        },
        tokens,
        steps: Vec::new(),
        remote_events: Vec::new(),
        cache_digest: None,
        memory: None,
        activity: None,
        others_in_flight: None,
    })
}
