//! `serve-decode`: the decode node, until it is told to stop.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::cli::{LimitArgs, ServeDecodeArgs};
use crate::environment::{Environment, process_rss_bytes, reset_peak_rss};
use crate::failure::Failure;
use crate::local_peer::LISTENING;
use crate::model::cache_pool::CachePool;
use crate::model::engine::Engine;
use crate::node;
use crate::node::compute::Compute;
use crate::node::decode::{DecodeNode, InFlight, Limits, Served, ServedRequest, serve};
use crate::node::reception::Sessions;
use crate::preparation;
use crate::terminal::{self, Terminal};
use crate::wire::{FrameLimits, Pace, message, socket};

/// Characters of an answer that are shown.
const SHOWN_CHARS: usize = 160;

/// Listens and serves.
pub fn run(
    args: &ServeDecodeArgs,
    quiet: bool,
    threads: usize,
    terminal: &Terminal,
) -> anyhow::Result<()> {
    let token = preparation::token(&args.token)?;
    let transport = preparation::transport(&args.tls)?;
    let runtime = super::runtime()?;
    // The port is taken before the model is loaded, so that a port in use costs nothing.
    let listener = runtime.block_on(socket::bind(&args.listen))?;
    let address = listener
        .local_addr()
        .context("cannot read the address back")?;
    if !socket::is_loopback(&address) {
        let address = address.to_string();
        preparation::demand_token(token.as_ref(), &transport, &args.token, &address)?;
    }
    let network_cores = args.socket.network_cores.as_ref();
    let mut environment = Environment::capture(threads);
    environment.network_cores = network_cores.cloned();
    let (engine, mut introduction) = match args.link_only {
        true => (None, node::introduction_for_link(&environment)?),
        false => {
            let file = preparation::model_file(&args.model, terminal)?;
            let checkpoint = preparation::open(&file, &args.model, 1)?;
            let engine = preparation::load(&checkpoint, &file, &args.model, terminal)?.engine;
            check_layer(args.corrupt_layer, &engine)?;
            environment.device = engine.device.clone();
            let introduction = node::introduction(&engine, &environment)?;
            (Some(engine), introduction)
        }
    };
    let limits = &args.limits;
    let cache_bytes = limits
        .max_cache
        .unwrap_or(introduction.limits.max_cache_bytes);
    introduction.limits = message::Limits {
        max_piece_bytes: limits.max_piece,
        max_cache_bytes: cache_bytes,
        ..introduction.limits
    };
    let printer = engine.clone();
    let compute = engine.map(Compute::start).transpose()?;
    super::keep_network_on(network_cores)?;
    // What loading took for a while is not part of serving.
    reset_peak_rss();
    let node = Arc::new(DecodeNode {
        introduction,
        compute,
        loaded_bytes: process_rss_bytes(),
        pool: CachePool::new(usize::try_from(cache_bytes).unwrap_or(usize::MAX)),
        limits: node_limits(limits),
        in_flight: InFlight::default(),
        token,
        transport,
        congestion_control: args.socket.congestion_control.clone(),
        corrupt_layer: args.corrupt_layer,
        sessions: Sessions::default(),
        admitted: AtomicU64::new(0),
        observer: Box::new(move |served| {
            if !quiet {
                // A closed stdout must not stop a server.
                let _ = terminal::print(&describe(&served, printer.as_deref()));
            }
        }),
    });
    let told = runtime.block_on(async {
        // First of all: whoever reads the address may want to stop the node at once.
        let told = told_to_end(args.until_stdin_closes).context("cannot listen for signals")?;
        terminal::print(&format!("{LISTENING}{address}"))?;
        terminal.line("stop with Ctrl-C");
        let drain = async {
            until(told.clone(), Told::Finish).await;
            terminal.line("finishing what is under way; a second signal stops at once");
        };
        let stop = until(told.clone(), Told::Stop);
        (serve(listener, node, drain, stop).await).context("cannot serve")?;
        anyhow::Ok(*told.borrow())
    })?;
    terminal.line("stopped");
    match told == Told::Stop && !args.until_stdin_closes {
        true => Err(Failure::Interrupted.into()),
        false => Ok(()),
    }
}

/// The node's limits as the flags give them.
fn node_limits(args: &LimitArgs) -> Limits {
    Limits {
        connections: args.max_connections as usize,
        requests: args.max_requests as usize,
        frames: FrameLimits {
            control_bytes: args.max_message,
            piece_bytes: args.max_piece,
        },
        prompt_tokens: args.max_prompt_tokens,
        output_tokens: args.max_output_tokens,
        handshake: args.handshake_timeout,
        idle: args.idle_timeout,
        pace: Pace {
            grace: args.frame_timeout,
            bytes_per_s: args.min_rate,
        },
    }
}

fn check_layer(layer: Option<usize>, engine: &Engine) -> Result<(), Failure> {
    let n_layers = engine.shape().n_layers;
    match layer {
        Some(layer) if layer >= n_layers => Err(Failure::Setting(format!(
            "--corrupt-layer {layer} does not exist: the model has layers 0 to {}",
            n_layers - 1
        ))),
        _ => Ok(()),
    }
}

/// What a node was told of its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Nothing,
    /// To finish what is under way.
    Finish,
    /// To stop at once.
    Stop,
}

/// The first Ctrl-C or SIGTERM asks to finish, the second to stop; so does the parent that lets go
/// of stdin. Signals count from now on.
fn told_to_end(until_stdin_closes: bool) -> std::io::Result<watch::Receiver<Told>> {
    let (tell, told) = watch::channel(Told::Nothing);
    if until_stdin_closes {
        // A plain thread: a blocking read on the runtime's pool would hold up its end.
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            tell.send_replace(Told::Stop);
        });
        return Ok(told);
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        for next in [Told::Finish, Told::Stop] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            tell.send_replace(next);
        }
    });
    Ok(told)
}

/// Resolves once the node was told this, or more.
async fn until(mut told: watch::Receiver<Told>, what: Told) {
    if told.wait_for(|told| *told >= what).await.is_err() {
        // Nobody is left who could tell.
        std::future::pending().await
    }
}

/// What the notebook's decode node prints, with the figures put right.
fn describe(served: &Served, engine: Option<&Engine>) -> String {
    match served {
        Served::Connected { peer, host } => format!("{peer} connected ({host})"),
        Served::Disconnected { peer, error: None } => format!("{peer} left"),
        Served::Disconnected {
            peer,
            error: Some(error),
        } => format!("{peer} dropped: {error}"),
        Served::Request(request) => describe_request(request, engine),
    }
}

fn describe_request(request: &ServedRequest, engine: Option<&Engine>) -> String {
    let ms = |ns: u64| ns as f64 / 1e6;
    let received = match request.kv_bytes {
        0 => "prefilled here".to_string(),
        bytes => format!(
            "KV cache {:.2} MB, last piece {:.1} ms after the first",
            bytes as f64 / 1e6,
            ms(request.receive_ns)
        ),
    };
    let steps = request.tokens.len().saturating_sub(1);
    let rate = match request.decode_ns {
        0 => String::new(),
        ns => format!(", {:.1} tokens/s", steps as f64 / (ns as f64 / 1e9)),
    };
    let decoded = engine.and_then(|engine| engine.tokenizer.decode(&request.tokens).ok());
    let text = decoded.unwrap_or_default();
    let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown: String = text.chars().take(SHOWN_CHARS).collect();
    let more = if shown.len() < text.len() { "…" } else { "" };
    format!(
        "{} request {}: {} prompt tokens, {received}; {steps} tokens decoded in {:.1} ms{rate}\n  \
         {shown}{more}",
        request.peer,
        request.number,
        request.prompt_tokens,
        ms(request.decode_ns),
    )
}
